"""Dictionaries of a residual stream: latents of a sparse autoencoder or transcoder as units that write into the stream.

A dictionary describes what layer l leaves in the residual stream at every token i, or what its MLP adds there,

    x_i = sum over n of p_i^n w_n + b_i + e_i          p_i = g_i code(h_i),    h_i = W_enc^T (y_i / g_i - m_i - b_dec) + b_enc

y is what it reads, x itself but for a transcoder; w_n is row n of W_dec. g and m undo its scaling of tokens: 1 and 0 for most,
the token's deviation and mean over it for `layer_norm`. b_i, g_i b_dec with that mean, is constant, e_i its error. `code` is

    relu         max(h, 0)
    topk         h where it is among the k largest of the token, clipped at 0 unless saev trained it; else 0
    batchtopk    h where it is above one threshold; else 0
    jumprelu     h where it is above the threshold of its latent; else 0

Latent n thus writes p_i^n w_n at token i, as a neuron of layer l does, and all effects of neurons are defined for it
(vit_second_order.py, Eq. 5 of paper 1): through the attention of the layers after l, and directly. Its own code is that of the
real forward pass, as a neuron's activation is. b and e are carried by the same paths, so that the sum over latents, b and e is
the effect of x. `with_dictionary` gives a tower whose layer l has latents in place of its neurons.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cliptools.console import note
from cliptools.errors import ModelError
from cliptools.models.dictionary_file import DictionaryFile
from cliptools.models.load import LoadedModel
from cliptools.models.origin import repository_of
from cliptools.towers.hooks import Hooks
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import Block, Tower, layer_scale_gain
from cliptools.unit_effects.factored import wide

EPSILON = 1e-5  # of ViT-Prisma's and SAELens's layer_norm, added to the deviation


class Scaled(NamedTuple):
    """Tokens as the encoder takes them."""

    y: Float[Tensor, "*b j"]
    """y / g - m."""
    gain: Float[Tensor, "*b 1"]
    """g, by which codes are multiplied."""


class Dictionary:
    """A dictionary with its encoder."""

    def __init__(self, file: DictionaryFile) -> None:
        self.file, self.settings = file, file.settings
        self._weights: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def layer(self) -> int:
        """The layer in whose residual stream it is."""
        assert self.settings.layer is not None  # checked when the file was read
        return self.settings.layer

    @property
    def latents(self) -> int:
        """Number of latents."""
        return len(self.file.b_enc)

    @property
    def record(self) -> dict[str, Any]:
        """The dictionary as a bundle's header records it."""
        settings = self.settings
        fields = {"file": self.file.spec, "sha256": self.file.digest, "latents": self.latents}
        return fields | {"reads": settings.reads, "writes": settings.writes, "activation": settings.activation}

    def check_tower(self, tower: Tower) -> None:
        """Check that the dictionary fits a tower.

        Raises:
            ModelError: its layer does not exist, or it is of another width or of tokens that the tower lacks.
        """
        layer, title = self.layer, self.file.title
        if layer >= tower.depth:
            raise ModelError(f"{title}: a dictionary of layer {layer}, this model has layers 0 to {tower.depth - 1}")
        width = tower.blocks[layer].output.out_features
        for name, side in (("W_enc", self.file.W_enc.shape[0]), ("W_dec", self.file.W_dec.shape[1])):
            if side != width:
                raise ModelError(f"{title}: {name} is for {side} numbers a token, this model's residual stream has {width}")
        if self.settings.tokens == "class" and not tower.prefix:
            raise ModelError(f"{title}: a dictionary of class tokens, this model has none")

    def check_model(self, model: LoadedModel) -> None:
        """Check that the dictionary was trained on a model, as far as its configuration and the model's name tell.

        Raises:
            ModelError: it was trained on another one.
        """
        title, trained_on = self.file.title, self.settings.model
        if self.settings.sha256 is not None:
            if self.settings.sha256 != model.sha256:
                raise ModelError(f"{title}: a dictionary of {trained_on or 'another model'}, {model.name} has other weights")
            return
        own = repository_of(model.name, model.pretrained)
        trained = (trained_on or "").rpartition(":")[2].strip("/").casefold()
        if own is not None and own != trained and own.partition("/")[0] == trained.partition("/")[0]:
            raise ModelError(f"{title}: a dictionary of {trained_on}, {model.name} has the weights of {own}")
        if own is None or own != trained:
            note(f"{title}: trained on {trained_on or 'a model that it does not name'}; not checked if that is {model.name}")

    def scaled(self, y: Float[Tensor, "*b j"]) -> Scaled:
        """y / g - m and g; ViT-Prisma's layer_norm divides by the deviation of n - 1 degrees of freedom and epsilon."""
        if self.settings.scaling == "layer_norm":
            centred = y - y.mean(-1, keepdim=True)
            sigma = centred.std(-1, keepdim=True)
            return Scaled(centred / (sigma + EPSILON), sigma)
        if self.settings.scaling == "norm":
            gain = y.norm(dim=-1, keepdim=True) / y.shape[-1] ** 0.5
            return Scaled(y / gain, gain)
        return Scaled(y, torch.ones_like(y[..., :1]))

    def activations(self, y: Float[Tensor, "*b j"]) -> Float[Tensor, "*b n"]:
        """p: the code of every latent, times g."""
        if self._weights is None or self._weights[0].device != y.device or self._weights[0].dtype != y.dtype:
            shift = self.file.b_dec if self.settings.subtract else torch.zeros_like(self.file.b_dec)
            bias = self.file.b_enc.double() - shift.double() @ self.file.W_enc.double()
            thresholds = self.file.thresholds
            if thresholds is None:
                thresholds = torch.full_like(self.file.b_enc, self.settings.threshold or 0.0)
            W_enc, bias, thresholds = (tensor.to(y) for tensor in (self.file.W_enc, bias, thresholds))
            self._weights = W_enc, bias, thresholds
        W_enc, bias, thresholds = self._weights
        scaled = self.scaled(y)
        return scaled.gain * self._code(scaled.y @ W_enc + bias, thresholds)

    def _code(self, h: Float[Tensor, "*b n"], thresholds: Float[Tensor, " n"]) -> Float[Tensor, "*b n"]:
        """The code of every latent."""
        settings = self.settings
        if settings.activation == "relu":
            return h.relu()
        if settings.activation == "topk":
            assert settings.k is not None  # checked when the file was read
            top = h.topk(settings.k, -1)
            values = top.values.relu() if settings.clipped else top.values
            return torch.zeros_like(h).scatter(-1, top.indices, values)
        return h.relu() * (h > thresholds)


@dataclass(frozen=True)
class LatentBlock(Block):
    """A block with the latents of a dictionary in place of the neurons of its MLP."""

    dictionary: Dictionary | None = None
    prefix: int = 1
    """Number of tokens before the patches."""

    @property
    def latents(self) -> int:
        """Number of latents."""
        return self._dictionary.latents

    @property
    def _dictionary(self) -> Dictionary:
        assert self.dictionary is not None  # with_dictionary gives one
        return self.dictionary

    def neuron_outputs(self, neurons: slice | Int[Tensor, "n"]) -> Float[Tensor, "width n"]:
        """w_n: the decoder's vector of each latent; in float32 at least."""
        index = neurons if isinstance(neurons, slice) else neurons.cpu()
        return self._dictionary.file.W_dec[index].to(wide(self.output.weight)).T

    def activation_hooks(self, store: dict[int, Tensor], layer: int) -> Hooks:
        """Hooks that keep p [b, token, latent] by the number of the layer; 0 at tokens that the dictionary does not read."""
        settings = self._dictionary.settings

        def keep(y: Float[Tensor, "b token j"]) -> None:
            p = self._dictionary.activations(wide(y))
            if settings.tokens == "class":
                p[:, 1:] = 0
            elif settings.tokens == "patches":
                p[:, : self.prefix] = 0
            store[layer] = p

        return [self._reading(keep)]

    def _reading(self, use: Callable[[Float[Tensor, "b token j"]], None]) -> tuple[nn.Module, Callable[..., None]]:
        """The module and the hook that give y to `use`."""
        reads = self._dictionary.settings.reads
        if reads == "residual":
            return self.module, lambda module, inputs, output: use(output)
        if reads == "mlp-input":
            return self.mlp, lambda module, inputs, output: use(inputs[0])
        gain = layer_scale_gain(self.ls_2, wide(self.output.weight))[:, 0]
        return self.norm_mlp or self.mlp, lambda module, inputs, output: use(wide(output) * gain)


def with_dictionary(visual: nn.Module | Tower, dictionary: Dictionary) -> Tower:
    """The adapter of a tower in which only the dictionary's layer has units, which are its latents.

    Raises:
        ModelError: the dictionary does not fit the tower.
    """
    tower = tower_of(visual)
    dictionary.check_tower(tower)
    layer = dictionary.layer
    view = copy.copy(tower)
    block = LatentBlock(**vars(tower.blocks[layer]), dictionary=dictionary, prefix=tower.prefix)
    view.blocks = [*tower.blocks[:layer], block, *tower.blocks[layer + 1 :]]
    view.unit_layers = range(layer, layer + 1)
    return view
