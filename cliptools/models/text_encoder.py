"""Embeddings of texts by any open_clip text tower, and the templates that put texts into sentences.

The tower reads only the positions up to the longest text of a batch where that is exact. A template is a sentence with `{}` for
the text, or the name of a set: `imagenet` is CLIP's 80 of its zero-shot evaluation, `emoji` those of the embedded models, which
give names their article, `none` is the bare text.
"""

import copy
import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cliptools.console import progress
from cliptools.devices import Limit, in_halves
from cliptools.embedded_models import EMBEDDED, EMBEDDED_DIR
from cliptools.emoji.scenes import ZERO_SHOT_TEMPLATES, with_article
from cliptools.errors import ModelError, TextError, UsageError
from cliptools.io.cache import cached
from cliptools.io.header import canonical, digest
from cliptools.library_patches import imagenet_lists, import_open_clip
from cliptools.models.checkpoints.names import VOCABULARY
from cliptools.models.hub import hub_in_a_line, no_foreign_code, reason
from cliptools.models.load import LoadedModel, RecordedModel
from cliptools.models.origin import find_origin
from cliptools.models.unusable import unusable
from cliptools.text import BARE, EMOJI, IMAGENET, TEMPLATE_SETS
from cliptools.text.vocabularies import Pool

CACHE_FORMAT = 1  # to be raised when the same texts and weights come to give other numbers
SLOT = "{}"
SCHEMES = ("local-dir:", "hf-hub:")
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

    A header with `architecture` is sufficient if the tokenizer is open_clip's own, chosen by the model's name. The tokenizer of
    a folder or a hub's model is in files that can change, so that these models are loaded and described.
    """
    identity = model.identity
    if identity.get("architecture") and not model.name.startswith(SCHEMES):
        return canonical([CACHE_FORMAT, version("open_clip_torch"), {key: identity.get(key) for key in DECISIVE}])
    loaded = _weights_of(model)
    return canonical([CACHE_FORMAT, loaded.sha256, architecture(loaded), loaded.precision])


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
    total, limit = torch.zeros((), device=loaded.device), Limit()
    for template in templates or (SLOT,):
        sentences = [template.replace(SLOT, text) for text in texts]
        embedded = encode_tokens(loaded, tokenize(sentences), batch_size, cut, limit)
        _check_usable(embedded, sentences)
        total = total + F.normalize(embedded.float(), dim=1)
    _check_usable(total, texts)
    return F.normalize(total, dim=1)


def _check_usable(embedding: Float[Tensor, "text d"], texts: Sequence[str]) -> None:
    """Check that the embeddings of all texts are usable.

    Raises:
        TextError: one is not; the message names the first.
    """
    reasons = unusable(embedding)
    if reasons:
        row, reason = next(iter(reasons.items()))
        more = f", as of {len(reasons) - 1} more texts of {len(texts)}" if len(reasons) > 1 else ""
        raise TextError(
            f"text {texts[row]!r}: {reason}{more}: the weights are damaged, or too large for the model's precision "
            "(--precision of clip-effects); try bf16 or fp32"
        )


def check_templates(templates: Sequence[str]) -> None:
    """Check that every template has a place for the text.

    Raises:
        TextError: a template has none.
    """
    for template in templates:
        if SLOT not in template:
            names = ", ".join(TEMPLATE_SETS)
            raise TextError(f"template {template!r}: expected {SLOT} where the text goes, as in 'a photo of {SLOT}', or {names}")


def tokenizer_of(loaded: LoadedModel) -> Callable[[Sequence[str]], Int[Tensor, "text position"]]:
    """Return open_clip's tokenizer of a model, at the model's context length.

    Raises:
        ModelError: the tokenizer cannot be loaded.
    """
    name = f"local-dir:{EMBEDDED_DIR / loaded.name}" if loaded.name in EMBEDDED else loaded.name
    try:
        with nullcontext() if loaded.name in EMBEDDED else no_foreign_code():
            return _tokenizer(name, getattr(loaded.clip, "context_length", None), getattr(loaded.clip, "vocab_size", None))
    except Exception as error:
        raise ModelError(f"model {loaded.name!r}: its tokenizer cannot be loaded ({reason(error)})") from None


@functools.cache
def _tokenizer(
    name: str, context_length: int | None, vocabulary: int | None
) -> Callable[[Sequence[str]], Int[Tensor, "text position"]]:
    """open_clip's; of transformers' folders CLIP's own vocabulary, which open_clip brings, or the one in the folder."""
    open_clip = import_open_clip()

    with hub_in_a_line():
        if name.startswith(SCHEMES) and (origin := find_origin(name, None)).translated:
            if vocabulary == VOCABULARY:
                return open_clip.SimpleTokenizer(context_length=context_length)
            return open_clip.tokenizer.HFTokenizer(str(origin.folder), context_length=context_length)
        return open_clip.get_tokenizer(name, context_length=context_length)


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

    def encode(batch: Sequence[int], some: Int[Tensor, "batch position"]) -> Float[Tensor, "batch d"]:
        length = tokens.shape[1] if ends is None else int(ends[list(batch)].max())
        return tower.encode(some[:, :length].to(loaded.device))  # (batch, length) -> (batch, d)

    batches = ((batch.tolist(), tokens[batch]) for batch in order.split(batch_size))
    shown = progress(batches, "encoding texts", total=len(tokens), step=batch_size)
    found = torch.cat([rows for _, rows in in_halves(shown, encode, "texts", limit)])
    return torch.empty_like(found).index_copy_(0, order.to(found.device), found)


@dataclass(frozen=True)
class _CausalPart:
    """The part of a model that holds its text tower's tables."""

    module: Any
    name: str
    """Its attribute of the model; empty where the model itself holds them."""
    pool_type: str
    eos_id: int | None


class _Tower:
    """open_clip's own encode_text, with tables and mask shortened to the tokens it is given.

    Exact where the tower is causal and pooled at the end token: nothing behind that token reaches it. open_clip's code
    runs unchanged, on a copy of the modules that hold the two tensors which fix its length, so that others may use the
    model at the same time; all else is the model's own.
    """

    def __init__(self, clip: nn.Module) -> None:
        self.clip: Any = clip
        self.part = _causal_part(clip)

    def ends(self, tokens: Int[Tensor, "text position"]) -> Int[Tensor, " text"] | None:
        """Positions needed of each text, up to its end token; None where the tower cannot be cut."""
        if self.part is None:
            return None
        at_end = tokens.eq(self.part.eos_id or 0) if self.part.pool_type == "eos" else tokens
        return at_end.int().argmax(dim=1) + 1  # as open_clip's text_global_pool finds it

    def encode(self, tokens: Int[Tensor, "text position"]) -> Float[Tensor, "text d"]:
        """Embeddings, not normalised."""
        length = tokens.shape[1]
        if self.part is None or length == len(self.part.module.positional_embedding):
            return self.clip.encode_text(tokens)
        return self._shortened(self.part, length).encode_text(tokens)

    def _shortened(self, part: _CausalPart, length: int) -> Any:
        """Return the model with tables for `length` tokens; it shares all other tensors and modules with the model."""
        cut = _own_copy(part.module)
        cut._parameters["positional_embedding"] = part.module.positional_embedding[:length]
        cut._buffers["attn_mask"] = part.module.attn_mask[:length, :length]
        if not part.name:
            return cut
        clip = _own_copy(self.clip)
        clip._modules[part.name] = cut
        return clip


def _own_copy(module: nn.Module) -> Any:
    """Return a copy of a module with the same tensors and submodules, which can be replaced in the copy."""
    other: Any = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        setattr(other, name, dict(getattr(module, name)))
    return other


def _causal_part(clip: nn.Module) -> _CausalPart | None:
    """Return the part to cut; None for a tower that is not known to be causal and pooled at its end token."""
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


def architecture(loaded: LoadedModel) -> str:
    """Return a digest of everything that decides the text tower's output besides its weights, the tokenizer included."""
    heads = [module.num_heads for module in loaded.clip.modules() if isinstance(module, nn.MultiheadAttention)]
    text = getattr(loaded.clip, "text", loaded.clip)
    names = ("text_pool_type", "pool_type", "text_eos_id", "eos_id", "context_length")
    pooling = {name: getattr(text, name, None) for name in names}
    if getattr(text, "attn_mask", False) is None:  # said of the few towers that are not causal: the others keep their keys
        pooling["causal"] = False
    tokenizer = vars(tokenizer_of(loaded))
    plain = {name: value for name, value in tokenizer.items() if isinstance(value, str | int | None)}
    how = getattr(tokenizer.get("clean_fn"), "__name__", "")
    return digest(repr(loaded.clip), canonical([heads, pooling, plain, how]))


def check_template_options(given: Sequence[str]) -> None:
    """Check that templates are the name of one set, or sentences with a place for the text.

    Raises:
        UsageError: a name is combined with other templates.
        TextError: a sentence has no `{}`.
    """
    if named := next((template for template in given if template in TEMPLATE_SETS), None):
        if len(given) > 1:
            raise UsageError(f"--template {named}: stands for templates of its own, leave out the other --template")
        return
    check_templates(given)


def class_templates(model: str, given: Sequence[str]) -> tuple[str, ...]:
    """Return the given templates, else CLIP's 80, in which the papers name classes and concepts.

    For the embedded models the default is their own set.
    """
    return tuple(given) or ((EMOJI,) if model in EMBEDDED else (IMAGENET,))


def text_sentences(texts: Sequence[str], given: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the texts to put into templates, and the templates; no templates for bare texts."""
    if tuple(given) == (EMOJI,):
        return [with_article(text) for text in texts], ZERO_SHOT_TEMPLATES
    if tuple(given) == (IMAGENET,):
        return list(texts), imagenet_templates()
    return list(texts), () if tuple(given) == (BARE,) else tuple(given)


def concept_sentences(
    model: LoadedModel | RecordedModel, concepts: Sequence[str], templates: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """Return the texts of classes or concepts and their templates; see `text_sentences` and `class_templates`."""
    return text_sentences(concepts, class_templates(model.name, templates))


def encode_named(
    model: LoadedModel | RecordedModel, pool: Pool, given: Sequence[str], *, use_cache: bool = True
) -> Float[Tensor, "text d"]:
    """Unit-norm embeddings of a pool's texts in the templates as given, which may be the name of a set; see encode_pool."""
    sentences, templates = text_sentences(pool.texts, given)
    if tuple(sentences) != pool.texts:
        pool = Pool(pool.name, tuple(sentences), digest(*sentences))
    return encode_pool(model, pool, templates, use_cache=use_cache)


def imagenet_templates() -> tuple[str, ...]:
    """Return CLIP's 80 templates, with `{}` for the class."""
    return tuple(template(SLOT) for template in imagenet_lists().OPENAI_IMAGENET_TEMPLATES)


def templates_name(model: str, templates: Sequence[str]) -> str | list[str]:
    """Return the name or the sentences by which records refer to the templates of classes and concepts."""
    return recorded(class_templates(model, templates))


def recorded(given: Sequence[str]) -> str | list[str]:
    """Return templates as records and headers store them: the name of a set, else sentences; empty for the bare text."""
    if tuple(given) in ((IMAGENET,), (EMOJI,)):
        return given[0]
    return [] if tuple(given) == (BARE,) else list(given)


def as_given(recorded: str | Sequence[str]) -> tuple[str, ...]:
    """Return the templates that a record or header stores, in the form of --template."""
    return (recorded,) if isinstance(recorded, str) else tuple(recorded)
