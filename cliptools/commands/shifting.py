"""What clip-shift says of the shares it has measured: of each image, each group and each concept."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cliptools.ground.errors import CliptoolsError
from cliptools.ground.records import rounded

if TYPE_CHECKING:
    import numpy as np

    from cliptools.ground.baseline import Baseline
    from cliptools.ground.bundle import Bundle
    from cliptools.ground.groups import Groups
    from cliptools.ground.labels import Labels
    from cliptools.ground.models import LoadedModel
    from cliptools.ground.shift_plot import Panel
    from cliptools.methods.point_biserial import Correlation
    from cliptools.methods.running_moments import GroupMoments, Sample

    Read = tuple[list[int], np.ndarray]
    """Numbers of some images and their shares [b, concept]."""

NUMBERS = ("mean", "spread", "skewness")
DIGITS = 9  # of what a later run is to compare itself with
Record = dict[str, Any]


class Watched(NamedTuple):
    """The concepts, and how their shares are measured."""

    concepts: Sequence[str]
    units: Sequence[Sequence[Record]]
    """Of each concept; none where CLIP's own texts are asked."""
    share: "Callable[[Any], tuple[np.ndarray, dict[int, str]]]"
    """Of some pictures, the concepts' shares [b, concept], and the rows that are not usable with the reason."""


class Alarm(NamedTuple):
    """What an alarm was asked for."""

    sigmas: float | None
    """None: compare, alarm never."""
    each: bool
    match: bool


def watch(neurons: "Bundle", model: "LoadedModel", options: dict[str, Any]) -> Watched:
    """Choose each concept's units."""
    import torch

    from cliptools.ground.concept_texts import concept_sentences
    from cliptools.ground.text_tower import encode_texts
    from cliptools.ground.unusable import unusable
    from cliptools.methods.choice import paths_of
    from cliptools.methods.concept_share import ConceptShare, choose_units

    by, concepts = options["by"], options["concepts"]
    sentences, templates = concept_sentences(model, concepts, options["templates"])
    t = encode_texts(model, sentences, templates)
    unit, r = torch.from_numpy(neurons["unit"]), torch.from_numpy(neurons["direction"])
    chosen = choose_units(r, t.cpu(), options["units_per_concept"])
    settings = neurons.header.settings
    paths = paths_of(model.clip, settings["effect"], settings.get("units", "neurons"))
    measure = ConceptShare(paths, unit, chosen.row, t)

    def share(pictures: torch.Tensor) -> "tuple[np.ndarray, dict[int, str]]":
        shares = measure(pictures)
        values: torch.Tensor = getattr(shares, by)
        return values.double().cpu().numpy(), unusable(shares.embedding, values)

    units = [
        [_unit(unit[row].tolist(), overlap) for row, overlap in zip(*pair, strict=True)]
        for pair in zip(chosen.row.tolist(), chosen.overlap.tolist(), strict=True)
    ]
    return Watched(concepts, [[] for _ in concepts] if by == "text" else units, share)


def _unit(unit: Sequence[int], overlap: float) -> Record:
    layer, neuron, head = unit
    return {"layer": layer, "neuron": neuron} | ({"head": head} if head >= 0 else {}) | {"overlap": rounded(overlap)}


class Measured(NamedTuple):
    """All shares, summed up."""

    moments: "GroupMoments"
    values: "np.ndarray"
    """Each image's shares [n, concept] if there are labels, else none."""
    images: "np.ndarray"
    """And which images these are [n]."""


def measure(
    read: "Iterator[Read]",
    groups: "Groups",
    watched: Watched,
    labels: "Labels | None",
    tell: Callable[[Record], None] | None = None,
) -> Measured:
    """Sum up by group; keep single values only where labels ask for them.

    Args:
        tell: Is told of every image, as it comes.
    """
    import numpy as np

    from cliptools.methods.running_moments import GroupMoments

    of = np.array(groups.of)
    moments = GroupMoments(len(groups.names), len(watched.concepts))
    values, numbers = [np.zeros((0, len(watched.concepts)), np.float32)], [np.zeros(0, np.int64)]
    for images, shares in read:
        moments.add(of[images], shares)
        if labels is not None:
            values.append(shares.astype(np.float32))
            numbers.append(np.array(images))
        if tell is not None:
            for image, row in zip(images, shares.tolist(), strict=True):
                tell(_image_record(image, row, groups, watched, labels))
    return Measured(moments, np.concatenate(values), np.concatenate(numbers))


def _image_record(image: int, shares: Sequence[float], groups: "Groups", watched: Watched, labels: "Labels | None") -> Record:
    record: Record = {"image": groups.source.names[image], "group": groups.names[groups.of[image]]}
    record["shares"] = {name: rounded(share, DIGITS) for name, share in zip(watched.concepts, shares, strict=True)}
    if labels is not None:
        said = zip(watched.concepts, labels[image].tolist(), strict=True)
        record["labels"] = {name: bool(label) for name, label in said if not math.isnan(label)}
    return record


def group_records(measured: Measured, groups: "Groups", watched: Watched, labels: "Labels | None") -> Iterator[Record]:
    """A record a concept and group that has an image."""
    import numpy as np

    from cliptools.methods.point_biserial import point_biserial

    of = np.array(groups.of)[measured.images]
    for c, concept in enumerate(watched.concepts):
        for g, group in enumerate(groups.names):
            if not measured.moments.count[g]:
                continue
            record = {"group": group, "concept": concept} | _sample(measured.moments.sample(g, c))
            if labels is not None:
                label = labels[measured.images[of == g], c]
                record |= _labelled(label) | _correlation("correlation", point_biserial(measured.values[of == g, c], label))
            yield record | {"units": watched.units[c]}


def concept_records(measured: Measured, groups: "Groups", watched: Watched, labels: "Labels") -> Iterator[Record]:
    """A record a labelled concept: over all images, and over groups."""
    import numpy as np

    from cliptools.methods.point_biserial import frequency, group_correlation, point_biserial

    of = np.array(groups.of)[measured.images]
    for c, concept in enumerate(watched.concepts):
        label, value = labels[measured.images, c], measured.values[:, c]
        if not frequency(label)[0]:
            continue
        over = group_correlation(value, label, of)
        record: Record = {"concept": concept, "images": len(value)} | _labelled(label)
        record |= _correlation("correlation", point_biserial(value, label)) | _correlation("group_correlation", over)
        yield record | {"units": watched.units[c]}


def _sample(sample: "Sample") -> Record:
    said = {key: getattr(sample, key) for key in ("mean", "spread", "standard_error", "skewness")}
    return {"images": sample.size} | {key: rounded(value, DIGITS) for key, value in said.items()}


def _labelled(label: "np.ndarray") -> Record:
    """How many images have a label, and how many of these show the concept."""
    from cliptools.methods.point_biserial import frequency

    count, shown = frequency(label)
    return {"labelled": count} | ({"frequency": rounded(shown)} if count else {})


def _correlation(name: str, found: "Correlation | None") -> Record:
    if found is None:
        return {}
    return {name: {key: rounded(getattr(found, key)) for key in ("value", "low", "high")} | {"count": found.size}}


def check_baseline(baseline: "Baseline", watched: Watched, said: Record) -> None:
    """Before any image is looked at.

    Raises:
        StreamError: a concept that the earlier run has not measured, or not so.
    """
    for concept, units in zip(watched.concepts, watched.units, strict=True):
        baseline.of(concept, None, {"units": units} | said)


def add_drift(records: Sequence[Record], baseline: "Baseline", asked: Alarm) -> None:
    """Compare each group with the earlier run, and say so in its record.

    Raises:
        StreamError: nothing to compare with.
    """
    from cliptools.methods.drift import chance_each, chance_of_run, compare, limit
    from cliptools.methods.running_moments import Sample, pooled

    found = []
    for record in records:
        earlier = baseline.of(record["concept"], record["group"] if asked.match else None, record)
        before, now = (
            pooled([Sample(each["images"], *(each[key] for key in NUMBERS)) for each in those]) for those in (earlier, [record])
        )
        if (comparison := compare(now, before)) is not None:
            found.append((record, before, comparison))
    if not found:
        raise CliptoolsError("nothing to compare: a mean needs two images at least, here and in the baseline")
    for record, before, comparison in found:
        drift: Record = {"before": {key: _sample(before)[key] for key in ("images", "mean", "standard_error")}}
        drift["z"] = rounded(comparison.z) if math.isfinite(comparison.z) else None
        if asked.sigmas is not None:
            tail = chance_each(asked.sigmas, len(found), asked.each)
            beyond = limit(comparison, tail)
            drift |= {"limit": rounded(beyond), "alarm": abs(comparison.z) > beyond, "asked": asked.sigmas}
            drift |= {"comparisons": len(found), "chance": rounded(chance_of_run(asked.sigmas, len(found), asked.each))}
        record["drift"] = drift


def alarmed(records: Sequence[Record]) -> list[Record]:
    """Records of groups that have drifted, the furthest first."""
    those = [record for record in records if record.get("drift", {}).get("alarm")]
    return sorted(those, key=lambda record: -abs(record["drift"]["z"] or math.inf))


def in_words(record: Record) -> str:
    """`spring, cat: 4.1 standard errors up`."""
    z = record["drift"]["z"]
    how = "another constant" if z is None else f"{abs(z):.1f} standard errors {'up' if z > 0 else 'down'}"
    return f"{record['group']}, {record['concept']}: {how}"


def panels(records: Sequence[Record], groups: Sequence[str], concepts: Sequence[str]) -> "list[Panel]":
    """What the plot shows."""
    from cliptools.ground.shift_plot import Panel

    by = {(record["concept"], record["group"]): record for record in records}
    drawn = []
    for concept in concepts:
        these = [by.get((concept, group), {}) for group in groups]
        mean, error, shown = ([each.get(key) for each in these] for key in ("mean", "standard_error", "frequency"))
        drawn.append(Panel(concept, mean, error, shown, [bool(each.get("drift", {}).get("alarm")) for each in these]))
    return drawn
