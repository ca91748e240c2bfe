"""Embeddings of texts by any open_clip text tower.

`encode_pool` returns the unit-norm embeddings of a vocabulary, from the cache if it has them. Where the result stays exact, the
tower reads only the positions up to the end of the longest text in a batch.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cliptools.console import progress, warn
from cliptools.devices import Limit, in_halves
from cliptools.embedded_models import EMBEDDED, EMBEDDED_DIR
from cliptools.errors import ModelError, TextError
from cliptools.io.cache import cached
from cliptools.io.header import canonical, digest
from cliptools.library_patches import import_open_clip, without_transformers
from cliptools.models.checkpoints.transformers_form import VOCABULARY
from cliptools.models.hub import no_foreign_code, quiet_hub, reason
from cliptools.models.load import LoadedModel, RecordedModel
from cliptools.models.origin import find_origin
from cliptools.models.templates import SLOT, check_templates, text_sentences
from cliptools.models.unusable import unusable
from cliptools.text.vocabularies import Pool

CACHE_FORMAT = 1  # increase it when the same texts and weights give other numbers
SHOWN = 60  # characters of a text in a message
SCHEMES = ("local-dir:", "hf-hub:")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")
PROBES = ("A photo of_two cats, 1999.", "x")
"""Texts whose tokens tell tokenizers of transformers apart, with their padding and cleaning."""
DECISIVE = ("name", "sha256", "architecture", "preprocessing", "precision")
"""Fields of a header's `model` that together with open_clip's version decide a text's embedding."""


def encode_pool(
    model: LoadedModel | RecordedModel, pool: Pool, templates: Sequence[str] = (), *, use_cache: bool = True
) -> Float[Tensor, "text d"]:
    """Return unit-norm embeddings of a vocabulary, float32 on the model's device; cached.

    A RecordedModel is loaded only if the cache has no embeddings of these texts, or its header does not identify them.

    Raises:
        TextError: a template without `{}`, or the embedding of a text is unusable.
        ModelError: the model's tokenizer cannot be loaded.
    """
    check_templates(templates)

    def compute() -> Float32[np.ndarray, "text d"]:
        return encode_texts(_weights_of(model), pool.texts, templates).cpu().numpy()

    if not use_cache:
        return torch.from_numpy(compute()).to(model.device)
    key = digest(_encoder_key(model), pool.digest, canonical(list(templates)))
    return torch.from_numpy(cached("texts", key, (len(pool.texts), -1), compute)).to(model.device)


def _encoder_key(model: LoadedModel | RecordedModel) -> str:
    """Identify the text encoder in the cache by all that decides its numbers: weights, architecture, precision, tokenizer.

    A header with `architecture` is sufficient if the tokenizer is open_clip's own, chosen by the model's name. A folder or hub's
    model has its tokenizer in files that can change, so these models are loaded and described.
    """
    identity = model.identity
    if identity.get("architecture") and not model.name.startswith(SCHEMES):
        return canonical([CACHE_FORMAT, version("open_clip_torch"), {key: identity.get(key) for key in DECISIVE}])
    loaded = _weights_of(model)
    return canonical([CACHE_FORMAT, loaded.sha256, text_tower_digest(loaded), loaded.precision])


def _weights_of(model: LoadedModel | RecordedModel) -> LoadedModel:
    return model.loaded if isinstance(model, RecordedModel) else model


def encode_texts(
    loaded: LoadedModel, texts: Sequence[str], templates: Sequence[str] = (), batch_size: int = 256, cut: bool = True
) -> Float[Tensor, "text d"]:
    """Return unit-norm embeddings of texts, float32 on the model's device.

    Args:
        texts: At least one.
        templates: Each with `{}` where the text goes; several are averaged as unit vectors, and the mean made unit norm
            again (as in CLIP's zero-shot evaluation). None: the bare texts.
        batch_size: Texts at a time.
        cut: Leave out the positions behind the longest text of a batch, where that is exact.

    Raises:
        TextError: a template without `{}`, or the embedding of a text is unusable.
        ModelError: the model's tokenizer cannot be loaded.
    """
    check_templates(templates)
    tokenize = tokenizer_of(loaded)
    total, limit, too_long = torch.zeros((), device=loaded.device), Limit(), torch.zeros(len(texts), dtype=torch.bool)
    for template in templates or (SLOT,):
        sentences = [template.replace(SLOT, text) for text in texts]
        tokens = tokenize(sentences)
        too_long |= _cut_sentences(tokenize, sentences, tokens)
        embedded = encode_tokens(loaded, tokens, batch_size, cut, limit)
        _check_usable(embedded, sentences)
        total = total + F.normalize(embedded.float(), dim=1)
    _check_usable(total, texts)
    if too_long.any():
        whose = f"{int(too_long.sum())} of {len(texts)} texts" + (" are, in templates," if templates else " are")
        first = texts[int(too_long.int().argmax())][:SHOWN]
        warn(f"{whose} longer than the {tokens.shape[1]} tokens that {loaded.name} reads; their ends count nothing: {first!r} …")
    return F.normalize(total, dim=1)


def _cut_sentences(
    tokenize: Callable[..., Int[Tensor, "text position"]], sentences: Sequence[str], tokens: Int[Tensor, "text position"]
) -> Bool[Tensor, " text"]:
    """Mark sentences whose ends the tokenizer has left out: with room for one more token, they have another end."""
    length = tokens.shape[1]
    cut = torch.tensor([len(sentence.encode()) > length - 2 for sentence in sentences])  # a token is a byte or more
    if rows := cut.nonzero()[:, 0].tolist():
        more = tokenize([*(sentences[row] for row in rows), ""], length + 1)  # (rows + 1, length + 1)
        cut[rows] = (more[:-1, :length] != tokens[rows]).any(1) | (more[:-1, length] != more[-1, length])
    return cut


def _check_usable(embedding: Float[Tensor, "text d"], texts: Sequence[str]) -> None:
    """Check that the embeddings of all texts are usable.

    Raises:
        TextError: one is not; the message names the first.
    """
    reasons = unusable(embedding)
    if reasons:
        row, reason = next(iter(reasons.items()))
        others = f", as of {len(reasons) - 1} more texts of {len(texts)}" if len(reasons) > 1 else ""
        raise TextError(
            f"text {texts[row]!r}: {reason}{others}: the weights are damaged, or too large for the model's precision "
            "(--precision of clip-effects); try bf16 or fp32"
        )


def tokenizer_of(loaded: LoadedModel) -> Callable[[Sequence[str]], Int[Tensor, "text position"]]:
    """Return open_clip's tokenizer of a model, at the model's context length.

    Raises:
        ModelError: the tokenizer cannot be loaded.
    """
    name = f"local-dir:{EMBEDDED_DIR / loaded.name}" if loaded.name in EMBEDDED else loaded.name
    sizes = getattr(loaded.clip, "context_length", None), getattr(loaded.clip, "vocab_size", None)
    try:
        if loaded.name in EMBEDDED:
            return _tokenizer(name, *sizes)
        with suppress(ModuleNotFoundError), without_transformers(), no_foreign_code():
            return _tokenizer(name, *sizes)
        with no_foreign_code():  # a tokenizer of transformers, which the context imports
            return _tokenizer(name, *sizes)
    except Exception as error:
        raise ModelError(f"model {loaded.name!r}: its tokenizer cannot be loaded ({reason(error)})") from None


@functools.cache
def _tokenizer(
    name: str, context_length: int | None, vocabulary: int | None
) -> Callable[[Sequence[str]], Int[Tensor, "text position"]]:
    """Return open_clip's tokenizer of this name.

    A CLIP of transformers gets CLIP's own tokenizer, which open_clip includes, if the vocabulary has that size; all others have
    the tokenizer beside their weights, and SigLIP's texts are in lower case without punctuation. A folder of open_clip without a
    tokenizer gets the one that its configuration names.
    """
    open_clip = import_open_clip()

    with quiet_hub():
        if not name.startswith(SCHEMES):
            return open_clip.get_tokenizer(name, context_length=context_length)
        origin = find_origin(name, None)
        text = origin.config.get("text_cfg", {})
        place = name.partition(":")[2] if origin.kind == "hub" else str(origin.folder)
        if origin.translated and vocabulary == VOCABULARY and not origin.siglip:
            return open_clip.SimpleTokenizer(context_length=context_length)
        if not origin.translated:
            beside = origin.folder is not None and any((origin.folder / file).is_file() for file in TOKENIZER_FILES)
            if origin.kind != "folder" or beside or not text.get("hf_tokenizer_name"):
                return open_clip.get_tokenizer(name, context_length=context_length)
            place = text["hf_tokenizer_name"]
        settings = {"tokenizer_mode": text.get("tokenizer_mode")} | (text.get("tokenizer_kwargs") or {})
        return open_clip.tokenizer.HFTokenizer(place, context_length=context_length, **settings)


@torch.inference_mode()
def encode_tokens(
    loaded: LoadedModel,
    tokens: Int[Tensor, "text position"],
    batch_size: int = 256,
    cut: bool = True,
    limit: Limit | None = None,
) -> Float[Tensor, "text d"]:
    """Return the text tower's output, not normalised, in the model's own type; texts of similar length share a batch.

    Args:
        batch_size: Texts at a time; fewer where the device runs out of memory.
        limit: See in_halves.
    """
    tower = _Tower(loaded.clip)
    ends = tower.ends(tokens) if cut else None
    order = torch.arange(len(tokens)) if ends is None else ends.argsort(stable=True)

    def encode(batch: Sequence[int], batch_tokens: Int[Tensor, "batch position"]) -> Float[Tensor, "batch d"]:
        length = tokens.shape[1] if ends is None else int(ends[list(batch)].max())
        return tower.encode(batch_tokens[:, :length].to(loaded.device))  # (batch, length) -> (batch, d)

    batches = ((batch.tolist(), tokens[batch]) for batch in order.split(batch_size))
    reported_batches = progress(batches, "encoding texts", total=len(tokens), step=batch_size)
    embeddings = torch.cat([rows for _, rows in in_halves(reported_batches, encode, "texts", limit)])
    return torch.empty_like(embeddings).index_copy_(0, order.to(embeddings.device), embeddings)


@dataclass(frozen=True)
class _CausalPart:
    """The part of a model that holds its text tower's tables."""

    module: Any
    name: str
    """Name of the model's attribute that is this module; empty if the module is the model itself."""
    pool_type: str
    eos_id: int | None


class _Tower:
    """open_clip's own encode_text, with the table of positions and the mask shortened to the length of the tokens.

    The result is exact if the tower is causal and pools at the end token, because later positions do not affect that token.
    open_clip's code runs unchanged on a copy of the modules that hold these two tensors, so that other threads may use the model
    at the same time; the copy shares everything else with the model.
    """

    def __init__(self, clip: nn.Module) -> None:
        self.clip: Any = clip
        self.part = _causal_part(clip)

    def ends(self, tokens: Int[Tensor, "text position"]) -> Int[Tensor, " text"] | None:
        """Return the number of positions of each text, up to its end token; None if the tower cannot be shortened."""
        if self.part is None:
            return None
        at_end = tokens.eq(self.part.eos_id or 0) if self.part.pool_type == "eos" else tokens
        return at_end.int().argmax(dim=1) + 1  # as in open_clip's text_global_pool: (text, position) -> (text,)

    def encode(self, tokens: Int[Tensor, "text position"]) -> Float[Tensor, "text d"]:
        """Return embeddings, not normalised."""
        length = tokens.shape[1]
        if self.part is None or length == len(self.part.module.positional_embedding):
            return self.clip.encode_text(tokens)
        return self._shortened(self.part, length).encode_text(tokens)

    def _shortened(self, part: _CausalPart, length: int) -> Any:
        """Return the model with tables for `length` tokens; it shares all other tensors and modules with the model."""
        shortened = _shallow_copy(part.module)
        shortened._parameters["positional_embedding"] = part.module.positional_embedding[:length]
        shortened._buffers["attn_mask"] = part.module.attn_mask[:length, :length]
        if not part.name:
            return shortened
        clip = _shallow_copy(self.clip)
        clip._modules[part.name] = shortened
        return clip


def _shallow_copy(module: nn.Module) -> Any:
    """Return a copy of a module with the same tensors and submodules, which can be replaced in the copy."""
    duplicate: Any = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        setattr(duplicate, name, dict(getattr(module, name)))
    return duplicate


def _causal_part(clip: nn.Module) -> _CausalPart | None:
    """Return the part that can be shortened; None for a tower not known to be causal and to pool at its end token."""
    open_clip = import_open_clip()
    CLIP, CustomTextCLIP = open_clip.model.CLIP, open_clip.model.CustomTextCLIP
    TextTransformer = open_clip.transformer.TextTransformer

    model: Any = clip
    if type(clip) is CLIP:
        part = _CausalPart(clip, "", model.text_pool_type, getattr(clip, "text_eos_id", None))
    elif type(clip) is CustomTextCLIP and type(clip.text) is TextTransformer and model.text.cls_emb is None:
        part = _CausalPart(clip.text, "text", model.text.pool_type, getattr(clip.text, "eos_id", None))
    else:
        return None
    mask = part.module.attn_mask
    if mask is None or part.pool_type not in ("argmax", "eos"):
        return None
    later = torch.ones_like(mask, dtype=torch.bool).triu(1)
    return part if bool((mask[later] == -torch.inf).all()) else None


def text_tower_digest(loaded: LoadedModel) -> str:
    """Return a digest of everything that decides the text tower's output besides its weights, the tokenizer included."""
    heads = [module.num_heads for module in loaded.clip.modules() if isinstance(module, nn.MultiheadAttention)]
    text = getattr(loaded.clip, "text", loaded.clip)
    names = ("text_pool_type", "pool_type", "text_eos_id", "eos_id", "context_length")
    pooling = {name: getattr(text, name, None) for name in names}
    if getattr(text, "attn_mask", False) is None:  # only for the few towers that are not causal: all others keep their cache keys
        pooling["causal"] = False
    tokenizer = vars(tokenizer_of(loaded))
    settings: dict[str, Any] = {name: value for name, value in tokenizer.items() if isinstance(value, str | int | None)}
    if "tokenizer" in tokenizer:
        settings["probes"] = tokenizer_of(loaded)(PROBES).tolist()
    cleaning = getattr(tokenizer.get("clean_fn"), "__name__", "")
    return digest(repr(loaded.clip), canonical([heads, pooling, settings, cleaning]))


def encode_named(
    model: LoadedModel | RecordedModel, pool: Pool, given: Sequence[str], *, use_cache: bool = True
) -> Float[Tensor, "text d"]:
    """Unit-norm embeddings of a pool's texts in the templates as given, which may be the name of a set; see encode_pool."""
    sentences, templates = text_sentences(pool.texts, given)
    if tuple(sentences) != pool.texts:
        pool = Pool(pool.name, tuple(sentences), digest(*sentences))
    return encode_pool(model, pool, templates, use_cache=use_cache)
