"""The edited model of units: they no longer write along texts, or stand at their means.

The equations are in analysis/weight_edit.py, the score of units in analysis/seen.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis.selection import by_layers
from cliptools.analysis.weight_edit import (
    NeuronGroup,
    PairGroup,
    Weights,
    heads_at_mean,
    largest_overlap,
    largest_overlap_of_pairs,
    neurons_at_mean,
    null_edit,
    null_pairs,
    pooled_at_mean,
)
from cliptools.console import count_of, summarise
from cliptools.errors import ModelError, UsageError
from cliptools.front.edit_means import bundle_means, open_mean_images, pooled_means, record_of, token_means
from cliptools.front.edit_request import HEAD, EditRequest
from cliptools.front.edit_units import (
    ChosenUnits,
    Line,
    effect_of_units,
    kind_of,
    text_vectors,
    units_by_score,
    units_of_bundle,
    units_of_lines,
)
from cliptools.front.edited import EXPLANATION, Edited
from cliptools.front.unit_records import unit_keys
from cliptools.io.bundle import Bundle
from cliptools.io.header import Header, model_difference, recorded_model
from cliptools.io.jsonl import rounded
from cliptools.models.architecture import tensors_sha256
from cliptools.models.checkpoints.edited import KIND, open_clip_settings, stored
from cliptools.models.load import DTYPE, LoadedModel, load_recorded_model
from cliptools.models.origin import find_origin
from cliptools.models.templates import recorded_templates
from cliptools.towers.kinds import tower_of
from cliptools.towers.tower import ClassToken
from cliptools.unit_effects.factored import unit_blocks_of
from cliptools.unit_effects.select import pools_by_attention

TOOL = "clip-edit"
NOTHING = 1e-6  # share of |w| removed up to which a null edit changes nothing but rounding


def edited_model(bundle: Bundle | None, lines: Sequence[Line] | None, request: EditRequest) -> Edited:
    """Return the edited model of a bundle's units, or of those that lines name.

    Raises:
        UsageError: the edit cannot be exact, or it would change nothing.
        ModelError: the model is not available, or not that of the units.
    """
    return editor_of(bundle, lines, request).edited()


def editor_of(bundle: Bundle | None, lines: Sequence[Line] | None, request: EditRequest) -> "Editor":
    """Return the editor of a bundle's units, or of those that lines name.

    Raises:
        UsageError: the units cannot be edited in this way.
        ModelError: the model is not available, or not that of the units.
    """
    if lines is not None and (request.sees or request.layers is not None):
        raise UsageError("--sees and --layers choose units of a bundle; lines name their units already")
    recorded = bundle.header.model if lines is None and bundle is not None else None
    chosen = None
    if lines is not None:
        chosen = units_of_lines(lines, request.writes, bundle)
        recorded = chosen.model
    assert recorded is not None
    model = _model(recorded, request)
    texts = dict.fromkeys((*request.sees, *request.writes))
    for unit_texts in () if chosen is None else chosen.writes:
        texts.update(dict.fromkeys(unit_texts))
    v = text_vectors(model, tuple(texts), request.texts, request.templates, request.cache)
    if chosen is None:
        assert bundle is not None
        chosen = _units_of_bundle(bundle, v, request)
    chosen = chosen.first(request.head)
    return Editor(model, chosen, v, request)


def _model(recorded: dict[str, Any], request: EditRequest) -> LoadedModel:
    """Return the model of the units in fp32.

    Raises:
        ModelError: it is not available, or the model that is given is another one or not whole.
    """
    if request.model is None:
        return load_recorded_model(recorded, request.device, "fp32", source="the units' record")
    model = request.model
    if difference := model_difference(model.identity, recorded):
        raise ModelError(f"the model that is given, {model.name!r}, is not the one of the units: {difference}")
    if model.precision != "fp32" or tensors_sha256(model.clip.state_dict()) != model.sha256:
        raise ModelError(
            f"the model that is given, {model.name!r}, is not whole in fp32: load it with load_model(precision='fp32')"
        )
    return model


def _units_of_bundle(bundle: Bundle, v: Mapping[str, Float[Tensor, " d"]], request: EditRequest) -> ChosenUnits:
    """Return the units of a bundle: the first by score with --sees, or with --writes and --head; else all."""
    whole = bundle.digest
    if request.layers is not None:
        bundle = bundle.select(by_layers(bundle, request.layers))
    every_unit = replace(units_of_bundle(bundle, request.writes), digest=whole)
    if not request.scored:
        return every_unit
    kind = kind_of(every_unit.unit)
    s, t = (torch.stack([v[text] for text in texts]) if texts else torch.zeros(0, 0) for texts in (request.sees, request.writes))
    by = request.by or ("cue" if kind == "pairs" else "cue-not-class")
    chosen = units_by_score(bundle, request.sees, request.writes, s, t, by)
    return replace(chosen.first(HEAD[kind] if request.head is None else request.head), digest=whole)


class Editor:
    """The edit of one model."""

    def __init__(
        self, model: LoadedModel, chosen: ChosenUnits, v: Mapping[str, Float[Tensor, " d"]], request: EditRequest
    ) -> None:
        """
        Args:
            v: Embeddings of all texts, less the mean of the vocabulary.

        Raises:
            StreamError: a unit that the model does not have.
            UsageError: the units cannot be edited in this way.
        """
        self.model, self.chosen, self.v, self.request = model, chosen, v, request
        self.visual: Any = model.clip.visual
        self.pooled = pools_by_attention(model.clip)
        self.kind = kind_of(chosen.unit)
        self.how = request.how or self._default_how()
        self.unit = torch.from_numpy(chosen.unit).long()
        self.effect = effect_of_units(model, self.kind)
        self.blocks, self.rows = unit_blocks_of(self.effect, self.unit)
        means = request.means
        if self.how == "null" and not self.pooled and (means.images, means.limit, means.sample) != (None, None, None):
            raise UsageError(
                "PATH, --limit and --sample are for means over images, and --how null of neurons takes none: leave them out"
            )
        if self.how == "null" and self.kind != self._null_kind:
            raise UsageError(
                f"--how null is for neurons of a ViT and for pairs of a ResNet; {self.kind} of this model have --how zero"
            )
        if self.how == "zero" and request.writes and not (request.scored and chosen.score is not None):
            raise UsageError(
                "--writes has no effect: units at their means (--how zero) write nothing that varies, and without --sees or "
                "--head no text chooses them"
            )
        self.early = not self.pooled and self.kind == "heads" and bool((self.unit[:, 0] < self._read_once).any())
        if self.early and not request.approximate and not request.mask:
            last = self._read_once
            heads = (
                f"heads before the last layer ({last})" if last < self._depth else "heads of a tower that reads a mean of tokens"
            )
            raise UsageError(
                f"{heads} are read at every token, and no weights put each token at its own mean: --mask FILE does, "
                "--approximate puts all tokens at one mean"
            )
        self.images: dict[str, Any] = {}

    @property
    def _null_kind(self) -> str:
        """The kind of units that a null edit has."""
        return "pairs" if self.pooled else "neurons"

    def _default_how(self) -> str:
        """Return null for the units that have it, of pairs if the texts are known; else zero."""
        return "null" if self.kind == self._null_kind and (not self.pooled or all(self.chosen.writes)) else "zero"

    @property
    def _depth(self) -> int:
        return tower_of(self.visual).depth

    @property
    def _read_once(self) -> int:
        """Number of the first layer whose heads are read at one token: the last; no layer where a mean of tokens is read."""
        return self._depth - isinstance(tower_of(self.visual).readout, ClassToken)

    @property
    def explanation(self) -> str:
        """Return the edit in words."""
        pooled = self.pooled and self.kind != "pairs"
        kind = f"pooled {self.kind}" if pooled else "early heads" if self.early else self.kind
        return EXPLANATION[self.how, kind]

    def edited(self) -> Edited:
        """Return the edited model.

        Raises:
            UsageError: the edit would change nothing.
        """
        removed: list[float] | None = None
        overlap_of: Callable[[Weights], float] | None = None
        if self.how == "null":
            weights, removed, overlap_of = self._null_weights()
        else:
            weights = self._weights_at_mean()
        before = self.model.clip.state_dict()
        changed = before | {f"visual.{name}": value.to(before[f"visual.{name}"]) for name, value in weights.items()}
        tensors = stored(changed, DTYPE[self.request.precision])
        loaded = {name: value.to(before[name].dtype) for name, value in tensors.items()}
        after = tensors_sha256(loaded)
        if all(torch.equal(loaded[name], before[name]) for name in before):
            raise UsageError("the edit would change nothing: every weight of these units is as it would be after it")
        overlap = None if overlap_of is None else overlap_of({name: loaded[f"visual.{name}"] for name in weights})
        return self._result(tensors, after, removed, overlap, tuple(weights))

    def _null_weights(self) -> tuple[Weights, list[float], Callable[[Weights], float]]:
        """Return the weights of a null edit, the share of |w| that each unit loses, and the largest overlap as a function.

        Raises:
            UsageError: a unit has no text, or no unit writes along the texts.
        """
        places = self._places()
        groups = [
            (number, self.unit[rows, 1], torch.stack([self.v[text] for text in texts]))
            for (number, texts), rows in places.items()
        ]
        overlap_of: Callable[[Weights], float]
        if self.pooled:
            b = self._pooled_means()
            pairs = [PairGroup(*group, b[rows]) for group, rows in zip(groups, places.values(), strict=True)]
            edit, overlap_of = null_pairs(self.visual, pairs), partial(largest_overlap_of_pairs, self.visual, pairs)
        else:
            neurons = [NeuronGroup(*group) for group in groups]
            edit, overlap_of = null_edit(self.visual, neurons), partial(largest_overlap, self.visual, neurons)
        removed = torch.zeros(len(self.unit), dtype=torch.float64)
        for rows, share in zip(places.values(), edit.removed, strict=True):
            removed[rows] = share.cpu()
        if float(removed.max()) < NOTHING:
            raise UsageError("the edit would change nothing: none of the units writes along these texts")
        return edit.weights, removed.tolist(), overlap_of

    def _places(self) -> dict[tuple[int, tuple[str, ...]], list[int]]:
        """Return the places of the units that share texts and a layer, or a head of a ResNet's pooling.

        Raises:
            UsageError: a unit has no text.
        """
        if not all(self.chosen.writes):
            raise UsageError(
                "--how null needs the texts that units shall no longer write: --writes TEXT, or lines that name them"
            )
        places: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        shared = self.unit[:, 2 if self.pooled else 0].tolist()
        for row, (number, texts) in enumerate(zip(shared, self.chosen.writes, strict=True)):
            places.setdefault((number, texts), []).append(row)
        return places

    def _weights_at_mean(self) -> Weights:
        """Return the weights of units at their means."""
        if self.pooled:
            return pooled_at_mean(self.visual, self.unit, self._pooled_means())
        numbers = self.numbers
        images = open_mean_images(self.request.means, self.model, self.kind)
        if self.kind == "neurons":
            means = token_means(self.model, numbers, {}, images)
            self.images = record_of(images, means.count)
            return neurons_at_mean(self.visual, numbers, {layer: mean.mean(0) for layer, mean in means.neuron_means.items()})
        means = token_means(self.model, {}, numbers, images)
        self.images = record_of(images, means.count)
        z = {layer: mean.mean(0) if layer < self._read_once else mean[0] for layer, mean in means.head_means.items()}
        return heads_at_mean(self.visual, numbers, z)

    @property
    def numbers(self) -> dict[int, Tensor]:
        """Numbers of the neurons or heads of a ViT, by layer."""
        column = 1 if self.kind == "neurons" else 2
        return {block.layer: self.unit[row, column] for block, row in zip(self.blocks, self.rows, strict=True)}

    def _pooled_means(self) -> Float[Tensor, "u d"]:
        """Return the means of units of a ResNet's pooling: the bundle's, unless images are named or it has none in raw scale."""
        unit = self.chosen.unit
        if self.request.means.images is None and (b := bundle_means(self.model, self.chosen.bundle, unit)) is not None:
            assert self.chosen.bundle is not None
            self.images = dict(self.chosen.bundle.header.images)
            return b
        images = open_mean_images(self.request.means, self.model, self.kind)
        b, count = pooled_means(self.model, self.effect, unit, images)
        self.images = record_of(images, count)
        return b

    def _result(
        self, tensors: dict[str, Tensor], after: str, removed: list[float] | None, overlap: float | None, changed: tuple[str, ...]
    ) -> Edited:
        """Return the edited model with its record and metadata."""
        model, request = self.model, self.request
        parent = recorded_model(model.identity) | {"sha256": model.sha256}
        kept = ("name", "preprocessing", "activation", "grid", "architecture")
        identity = {key: model.identity[key] for key in kept} | {"pretrained": None, "sha256": after, "precision": "fp32"}
        identity["parent"] = parent
        units = self.unit_records(removed)
        figures: dict[str, Any] = {
            "edit": self.explanation,
            "how": self.how,
            "exact": not self.early and request.precision == "fp32",
            "count": len(units),
        }
        texts = self.chosen.writes if self.how == "null" or request.scored else ()
        figures |= {"sees": list(request.sees), "writes": list(dict.fromkeys(t for of_unit in texts for t in of_unit))}
        if removed is not None and overlap is not None:
            figures["removed"] = {"mean": rounded(np.mean(removed)), "largest": rounded(max(removed))}
            figures["overlap"] = rounded(overlap)
        settings = figures | {"units": self.kind, "templates": recorded_templates(request.templates)}
        settings |= {"precision": request.precision, "names": self.unit.tolist(), "bundle": self.chosen.digest}
        history = [] if self.chosen.bundle is None else self.chosen.bundle.header.history
        counts = {"approximate": self.early, "seed": bool(self.images)}  # whether they changed anything
        arguments = {key: value for key, value in request.arguments.items() if counts.get(key, True)}
        header = Header(KIND, identity, self.images, settings, list(history)).after(TOOL, arguments)
        record = {"units": units} | figures | {"precision": request.precision, "images": self.images or None}
        record |= {"before": model.sha256, "after": after, "model": recorded_model(identity), "bundle": self.chosen.digest}
        record |= {"history": header.history}
        config = find_origin(model.name, model.pretrained, model.text_from).config
        summarise(f"{TOOL}: {count_of(len(units), self.kind[:-1])}, {self.how}, {model.sha256[:12]} -> {after[:12]}")
        settings_of_folder = open_clip_settings(config, model.computes.quick, model.preprocessing)
        return Edited(record, tensors, header, settings_of_folder, changed)

    def unit_records(self, removed: list[float] | None) -> list[dict[str, Any]]:
        """Return a record for each unit, with its texts, its score and the share of |w| that it loses."""
        records = []
        for row, (name, texts) in enumerate(zip(self.chosen.unit.tolist(), self.chosen.writes, strict=True)):
            record: dict[str, Any] = dict(unit_keys(*name))
            record |= {"writes": list(texts)} if self.how == "null" else {}
            record |= {"score": rounded(self.chosen.score[row])} if self.chosen.score is not None else {}
            records.append(record | ({"removed": rounded(removed[row])} if removed is not None else {}))
        return records
