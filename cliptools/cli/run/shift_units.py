"""The concepts that clip-shift watches: which units are each one's, and how shares are measured."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cliptools.analysis.concept_units import SETS, Chosen, ConceptShare, Look, SeeingUnits, Shares, choose_units, random_sets
from cliptools.console import working
from cliptools.devices import in_halves
from cliptools.effects.factored import FactoredEffect
from cliptools.effects.select import factored_effect
from cliptools.errors import StreamError
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import rounded, unit_name
from cliptools.io.shift_baseline import Baseline
from cliptools.models.load import LoadedModel
from cliptools.models.text_encoder import concept_sentences, encode_texts
from cliptools.models.unusable import Screen, unusable

Record = dict[str, Any]
Batches = Iterable[tuple[list[int], "Tensor"]]
"""Numbers of some images and their pictures [b, 3, y, x]."""


class Measures(NamedTuple):
    """What is measured on b images."""

    share: "np.ndarray"
    """The concepts' shares [b, concept]."""
    rest: "np.ndarray"
    """The model's own similarity, less what the units write [b, concept]."""
    random_share: "np.ndarray"
    """Of sets of random units [b, set, concept]."""
    random_rest: "np.ndarray"
    """Likewise [b, set, concept]."""


class Watched(NamedTuple):
    """The concepts, and how their shares are measured."""

    concepts: Sequence[str]
    units: Sequence[Sequence[Record]]
    """Of each concept; none where CLIP's own texts are asked."""
    choose: str | None
    """How they were chosen: overlap or seen; None where there are none."""
    looked_at: int | None
    """Images that chose them, here or in the baseline's run; None where none did."""
    sets: int
    """Sets of random units beside them."""
    measure: Callable[[Tensor], tuple[Measures, dict[int, str]]]
    """Of some pictures, and the rows that are not usable with the reason."""


def watch(
    neurons: Bundle,
    model: LoadedModel,
    options: Record,
    look: Callable[[], Batches],
    screen: Screen[int],
    baseline: Baseline | None = None,
) -> Watched:
    """Choose each concept's units, or take those of the baseline.

    Args:
        look: Gives the images that units are chosen by, where they are.
        screen: Leaves out images that are not usable.

    Raises:
        StreamError: the baseline says nothing of a concept, or its units are not in the bundle.
    """

    concepts, count = options["concepts"], options["units_per_concept"]
    sentences, templates = concept_sentences(model, concepts, options["templates"])
    t = encode_texts(model, sentences, templates)
    settings = neurons.header.settings
    paths = factored_effect(model.clip, settings["effect"], settings.get("units", "neurons"))
    text = options["by"] == "text"
    choose = None if text else choice_of(options, baseline)
    chosen, looked_at = _chosen(neurons, paths, t, options, choose, look, screen, baseline)
    unit = torch.from_numpy(neurons["unit"])
    sets = random_sets(0 if text else neurons.units, count, SETS)
    shares = ConceptShare(paths, unit, chosen.row, t, sets)
    units = [[] for _ in concepts] if text else _units(unit, chosen)
    return Watched(concepts, units, choose, looked_at, len(sets), lambda pictures: _measures(shares(pictures), options["by"]))


def choice_of(options: Record, baseline: Baseline | None) -> str:
    """How units are chosen: as asked for, else as the baseline's were, else by what they see too."""
    if options["choose"]:
        return str(options["choose"])
    if baseline is None:
        return "seen"
    settings = baseline.first(options["concepts"][0]).get("settings", {})
    return str(settings.get("choose", "overlap"))


def _chosen(
    neurons: Bundle,
    paths: FactoredEffect,
    t: Tensor,
    options: Record,
    choose: str | None,
    look: Callable[[], Batches],
    screen: Screen[int],
    baseline: Baseline | None,
) -> tuple[Chosen, int | None]:
    """The units, and how many images chose them."""

    unit, r = torch.from_numpy(neurons["unit"]), torch.from_numpy(neurons["direction"])
    if choose is not None and baseline is not None:
        records = [baseline.first(concept) for concept in options["concepts"]]
        return _earlier(neurons, r, t.cpu(), records, baseline.source), records[0].get("looked_at")
    if choose != "seen":
        return choose_units(r, t.cpu(), options["units_per_concept"]), None
    seeing = SeeingUnits(paths, unit, r, t.cpu())
    with working("choosing units"):
        for images, result in in_halves(look(), lambda _, pictures: seeing.look(pictures)):
            stay = list(screen.places(images, unusable(result.embedding, result.activity)))
            seeing.add(Look(*(part[stay] for part in result)))
    return seeing.choose(options["units_per_concept"]), seeing.count


def _earlier(neurons: Bundle, r: Tensor, t: Tensor, records: Sequence[Record], source: str) -> Chosen:
    """The units of an earlier run's records.

    Raises:
        StreamError: one that the bundle does not have.
    """

    known = {tuple(unit): row for row, unit in enumerate(neurons["unit"].tolist())}
    rows, seen = [], []
    for record in records:
        units = [(unit.get("layer"), unit.get("neuron"), unit.get("head", -1)) for unit in record.get("units", [])]
        if missing := next((unit for unit in units if unit not in known), None):
            raise StreamError(
                f"--baseline {source}: {record['concept']!r} was measured with unit {unit_name(*missing)}, which is not in"
                " the bundle (or not in --layers); take that run's options and bundle"
            )
        rows.append([known[unit] for unit in units])
        seen.append([unit.get("seen", float("nan")) for unit in record.get("units", [])])
    row = torch.tensor(rows)
    overlap = (r[row] * t.to(r)[:, None]).sum(-1)
    return Chosen(row, overlap, torch.tensor(seen))


def _units(unit: Tensor, chosen: Chosen) -> list[list[Record]]:
    """As records name them."""
    records = []
    for c, rows in enumerate(chosen.row.tolist()):
        of = []
        for n, (layer, neuron, head) in enumerate(unit[rows].tolist()):
            record: Record = {"layer": layer, "neuron": neuron} | ({"head": head} if head >= 0 else {})
            record["overlap"] = rounded(chosen.overlap[c, n])
            if chosen.seen is not None and not chosen.seen[c, n].isnan():
                record["seen"] = rounded(chosen.seen[c, n])
            of.append(record)
        records.append(of)
    return records


def _measures(shares: Shares, by: str) -> tuple[Measures, dict[int, str]]:
    """Shares the one way or the other, and what they are held against; and the rows that are not usable."""

    signed = by == "signed"
    random = shares.random_signed if signed else shares.random_norm[..., None].expand_as(shares.random_signed)
    parts = (
        {"norm": shares.norm, "signed": shares.signed, "text": shares.text}[by],
        shares.text - shares.signed,
        random,
        shares.text[:, None] - shares.random_signed,
    )
    return Measures(*(part.cpu().double().numpy() for part in parts)), unusable(shares.embedding, *parts)
