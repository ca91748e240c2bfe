"""Units for an edit: those of a bundle, those of largest score in it, or those that the lines of other commands name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cliptools.analysis.seen import cue_scores, write_scores
from cliptools.devices import to_float64
from cliptools.errors import StreamError, UsageError
from cliptools.front.bundles import require_neurons
from cliptools.front.mismatch import read_directions, require_read
from cliptools.front.vocabulary import Vocabulary, default_vocabulary_of, vocabulary
from cliptools.io.bundle import Bundle
from cliptools.io.header import NAMED, SETTLED, digest, model_difference, reason_of
from cliptools.io.jsonl import unit_name
from cliptools.models.load import LoadedModel
from cliptools.models.text_encoder import encode_named
from cliptools.text.vocabularies import Pool
from cliptools.towers.kinds import supported_tower
from cliptools.unit_effects.factored import FactoredEffect
from cliptools.unit_effects.select import factored_effect, pools_by_attention

Line = tuple[str, Mapping[str, Any]]
"""A record, and its place for messages."""
Unit = tuple[int, int, int]
NOT_EDITED = (
    "has latents of a dictionary, which no weights of the model hold, so that no edit of weights is exact; clip-ablate replaces "
    "their effects"
)


@dataclass(frozen=True)
class ChosenUnits:
    """Units to be edited, in the order of their score or of the lines."""

    unit: Int[np.ndarray, "u 3"]
    writes: tuple[tuple[str, ...], ...]
    """For each unit the texts that it shall no longer write; may be empty."""
    score: tuple[float, ...] | None
    model: dict[str, Any]
    """The model, as records or a bundle's header have it."""
    bundle: Bundle | None
    """The bundle of the units, if there is one."""
    digest: str | None
    """Digest of the bundle, also of one that only the lines name."""

    def first(self, head: int | None) -> "ChosenUnits":
        """Return the first units."""
        score = None if self.score is None else self.score[:head]
        return ChosenUnits(self.unit[:head], self.writes[:head], score, self.model, self.bundle, self.digest)


def distinct_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Return texts without spaces around them, each once."""
    return tuple(dict.fromkeys(text.strip() for text in texts))


def units_of_lines(lines: Iterable[Line], writes: Sequence[str], bundle: Bundle | None) -> ChosenUnits:
    """Return the units of lines of clip-spurious, clip-explain, clip-judge, clip-top or clip-view.

    A unit that several lines name shall no longer write any of their texts.

    Args:
        writes: Texts in place of those in the lines.
        bundle: The bundle from which the lines come, for means of its units.

    Raises:
        StreamError: there are no lines, a line names no unit or no model, or lines are of several models.
    """
    texts: dict[Unit, dict[str, None]] = {}
    model: dict[str, Any] | None = None
    digests = set()
    for place, record in lines:
        line_model = _model(record, place)
        if model is not None and (difference := model_difference(line_model, model)):
            raise StreamError(f"{place}: a unit of another model than the lines before it ({difference})")
        model = model or line_model
        digests.add(record.get("bundle"))
        for unit in _units(record, place):
            texts.setdefault(unit, {}).update(dict.fromkeys(writes or _texts(record)))
    if model is None:
        expected = "expected a bundle, or lines of clip-spurious, clip-explain or clip-judge"
        raise StreamError(f"{expected}, found nothing (did the command before it fail?)")
    if not texts:
        raise StreamError("none of the lines names a unit with a positive share")
    if bundle is not None and (difference := model_difference(bundle.header.model, model)):
        raise StreamError(f"the bundle for means is of another model than that of the lines{reason_of(difference)}")
    source = next(iter(digests)) if len(digests) == 1 else None
    return ChosenUnits(np.array(list(texts), np.int32), tuple(map(tuple, texts.values())), None, model, bundle, source)


def _model(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the model that a record names.

    Raises:
        StreamError: it names none.
    """
    model = record.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("name"), str) or not isinstance(model.get("sha256"), str):
        raise StreamError(f"{place}: expected a record with units and their `model` (name, pretrained, sha256)")
    if not all(isinstance(model.get(key, {}), dict) for key in ("preprocessing", "sources", "parent")):
        raise StreamError(f"{place}: `model` should hold objects as preprocessing, sources and parent")
    return {key: model.get(key) for key in NAMED} | {key: model[key] for key in SETTLED if key in model}


def _units(record: Mapping[str, Any], place: str) -> list[Unit]:
    """Return the units that a record names: its own, or those of positive share in its list of units.

    Raises:
        StreamError: it names none, or latents of a dictionary.
    """
    if "dictionary" in record:
        raise StreamError(f"{place}: the line {NOT_EDITED}")
    if "layer" in record:
        return [_unit(record, place)]
    listed = next((record[key] for key in ("units", "neurons") if isinstance(record.get(key), list)), None)
    if listed is None or not all(isinstance(item, dict) for item in listed):
        raise StreamError(f"{place}: names no unit; expected a line of clip-spurious, clip-explain or clip-judge")
    return [_unit(item, place) for item in listed if _share(item) > 0]


def _share(item: Mapping[str, Any]) -> float:
    """Return a unit's excess over its mean (clip-explain), else its share, else 1."""
    share = item.get("excess", item.get("share", 1))
    return float(share) if isinstance(share, int | float) else 0.0


def _unit(record: Mapping[str, Any], place: str) -> Unit:
    """Return layer, neuron and head, -1 where there is none.

    Raises:
        StreamError: they are not whole numbers from 0, or there is neither a neuron nor a head.
    """
    layer, neuron, head = (record.get(key, -1) for key in ("layer", "neuron", "head"))
    numbers = layer, neuron, head
    if not all(type(number) is int and -1 <= number < 1 << 31 for number in numbers) or layer < 0 or max(neuron, head) < 0:
        shown = ", ".join(f"{key} {str(record.get(key))[:20]}" for key in ("layer", "neuron", "head") if key in record)
        raise StreamError(f"{place}: expected a unit as whole numbers layer, neuron and head, found {shown or 'none'}")
    return layer, neuron, head


def _texts(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts that the units of a record write: a named one, else the unit's first written word."""
    for key in ("writes", "predict", "a"):
        if isinstance(record.get(key), str):
            return (record[key],)
    words = [record.get("written"), *(record["words"][:1] if isinstance(record.get("words"), list) else ())]
    named = (item.get("word") for item in words if isinstance(item, dict))
    return tuple(word for word in named if isinstance(word, str))[:1]


def units_of_bundle(bundle: Bundle, writes: Sequence[str]) -> ChosenUnits:
    """Return all units of a bundle, in its order.

    Raises:
        StreamError: it has none, or they are latents of a dictionary.
    """
    if "dictionary" in bundle.header.settings:
        raise StreamError(f"the bundle {NOT_EDITED}")
    if not bundle.units:
        raise StreamError("the bundle has no units; was an earlier selection too narrow?")
    return ChosenUnits(bundle["unit"], (tuple(writes),) * bundle.units, None, bundle.header.model, bundle, bundle.digest)


def units_by_score(
    bundle: Bundle, sees: Sequence[str], writes: Sequence[str], s: Float[Tensor, "s d"], t: Float[Tensor, "t d"], by: str
) -> ChosenUnits:
    """Return the units of a bundle that see a cue and write a class, the largest score first.

    Args:
        s: Embeddings of the cues, less the mean of the vocabulary. Without one, units are scored by what they write.
        t: Embeddings of the classes, likewise.
        by: One of analysis.seen.SCORES.

    Raises:
        StreamError: the bundle has no read directions.
        UsageError: no unit has a positive score.
    """
    chosen = units_of_bundle(bundle, writes)
    full = require_neurons(require_read(bundle) if len(s) else bundle)
    r, deviation = torch.from_numpy(full["direction"]), torch.from_numpy(full["deviation"])
    if len(s):
        score = cue_scores(read_directions(full), r, s.cpu(), t.cpu(), by == "cue-not-class")
    else:
        score = write_scores(r, deviation, t.cpu())
    order = score.argsort(descending=True, stable=True)
    order = order[score[order] > 0]
    if not len(order):
        seen = f"sees {' or '.join(map(repr, sees))} and " if sees else ""
        raise UsageError(f"no unit of the bundle {seen}writes {' or '.join(map(repr, writes))}: nothing to edit")
    rows = order.numpy()
    texts = (tuple(writes),) * len(rows)
    return ChosenUnits(chosen.unit[rows], texts, tuple(score[order].tolist()), chosen.model, bundle, chosen.digest)


def kind_of(unit: Int[np.ndarray, "u 3"]) -> str:
    """Return neurons, heads or pairs.

    Raises:
        UsageError: units of several kinds.
    """
    kinds = {"pairs" if n >= 0 and h >= 0 else "neurons" if n >= 0 else "heads" for _, n, h in unit.tolist()}
    if len(kinds) > 1:
        first = unit_name(*unit[0].tolist())
        raise UsageError(f"units of several kinds ({', '.join(sorted(kinds))}; the first is {first}): edit one kind at a time")
    return kinds.pop()


def text_vectors(
    model: LoadedModel, names: tuple[str, ...], texts: Vocabulary, templates: Sequence[str], cache: bool
) -> dict[str, Float[Tensor, " d"]]:
    """Return the embedding of every text, less the mean of the vocabulary.

    Args:
        names: The texts, each once.
        texts: The vocabulary; None for that of the model.
    """
    if not names:
        return {}
    pool = default_vocabulary_of(model.name) if texts is None else vocabulary(texts)
    mean = to_float64(encode_named(model, pool, templates, use_cache=cache)).mean(0)  # (d)
    t = encode_named(model, Pool("texts", names, digest(*names)), templates, use_cache=cache)  # (text, d)
    return dict(zip(names, to_float64(t) - mean, strict=True))


NOT_IN_WEIGHTS = {
    "pairs": "no weights belong to them alone",
    "heads": "every token, or a LayerNorm or an MLP behind the pooling, reads them with all others",
}
"""The reasons why no weights put units of a ViT that pools by attention at their means."""


def effect_of_units(model: LoadedModel, kind: str) -> FactoredEffect:
    """Return an effect that has the model's units of this kind.

    Raises:
        UsageError: no weights hold such units.
    """
    resnet = pools_by_attention(model.clip)
    if not resnet and supported_tower(model.clip).pooling is None:
        return factored_effect(model.clip, "first", kind)
    if not resnet and kind != "neurons":
        raise UsageError(f"{kind} of a ViT that pools by attention cannot be edited: {NOT_IN_WEIGHTS[kind]}; edit neurons")
    return factored_effect(model.clip, "pooled", kind)
