"""Margins of images between two texts, explained by the units of a bundle and checked by deletion.

The equations are in analysis/explanation.py and analysis/deletion.py; explain_texts.py chooses the texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.analysis.deletion import Deletion, deletion, random_orders, step_counts
from cliptools.analysis.explanation import Along, Explainer, ImageShares, ReadImages
from cliptools.analysis.margin_passes import explained_tower
from cliptools.analysis.selection import by_layers
from cliptools.arguments import checked, chosen_layers, chosen_templates, require_number, require_one_of
from cliptools.console import count_of, front_call, summarise
from cliptools.console import progress as shown
from cliptools.devices import in_halves
from cliptools.errors import StreamError, UsageError
from cliptools.front.ablate_settings import BundleSettings, effect_of, units_of
from cliptools.front.explain_texts import Classes, Target, Targets, check_texts, open_targets
from cliptools.front.explain_words import UnitWords, unit_words
from cliptools.front.explained import Explanation, Explanations
from cliptools.front.images import Images, Reading, open_any, read_batches
from cliptools.front.models import loaded_model_of
from cliptools.front.unit_records import record_source, unit_keys
from cliptools.front.vocabulary import Vocabulary
from cliptools.images.loader import ImageSource, Skipped, choose
from cliptools.images.relocate import recorded_source
from cliptools.io.bundle import Bundle
from cliptools.io.jsonl import rounded
from cliptools.models.load import LoadedModel, drop_text_tower
from cliptools.models.preprocessing import seen_picture
from cliptools.models.templates import check_template_options
from cliptools.models.unusable import Screen, unusable

TOOL = "clip-explain"
EFFECTS = ("second", "pooled")
BATCH_SIZE = 8
HEAD = 10
DELETE = 0.05
DRAWS = 5
SHOWN_HEADS = 2
KEPT_PAIRS = 64  # pairs of texts whose inner products are kept


@dataclass(frozen=True, kw_only=True)
class ExplainRequest:
    """Arguments of `explain`, which describes them."""

    texts: tuple[str, ...] = ()
    classes: Classes = None
    pool: Vocabulary = None
    templates: tuple[str, ...] = ()
    layers: Sequence[int] | None = None
    head: int = HEAD
    by: str = "excess"
    delete: float = DELETE
    draws: int = DRAWS
    limit: int | None = None
    sample: int | None = None
    seed: int = 0
    model: LoadedModel | None = None
    device: str = "auto"
    cache: bool = True
    reading: Reading = field(default_factory=lambda: Reading(batch_size=BATCH_SIZE))

    def check(self) -> None:
        """Reject invalid arguments and invalid combinations of them before any input is read.

        Raises:
            UsageError: an argument is invalid, or arguments contradict each other.
        """
        check_texts(self.texts, self.classes)
        check_template_options(self.templates)
        require_one_of("by", self.by, ("excess", "share"))
        numbers = {"head": self.head, "draws": self.draws, "limit": self.limit, "sample": self.sample}
        for name, number in (numbers | {"batch_size": self.reading.batch_size}).items():
            require_number(name, number, 1)
        require_number("delete", self.delete, 1e-9, 1)
        require_number("seed", self.seed, 0)
        require_number("workers", self.reading.workers, 0)


@checked
def explain(
    bundle: Bundle,
    images: Images | None = None,
    a: str | None = None,
    b: str | None = None,
    *,
    classes: Classes = None,
    pool: Vocabulary = None,
    templates: Sequence[str] = (),
    layers: Sequence[int] | None = None,
    head: int = HEAD,
    by: str = "excess",
    delete: float = DELETE,
    draws: int = DRAWS,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    model: LoadedModel | None = None,
    device: str = "auto",
    cache: bool = True,
    batch_size: int = BATCH_SIZE,
    workers: int | None = None,
    strict: bool = False,
    progress: bool = False,
) -> Explanations:
    """Explain the margins of images between texts A and B by units, as clip-explain does.

    Args:
        bundle: Units of second-order or pooled effects, with or without words.
        images: Images of any kind that `effects` takes. None: the scenes that were rendered for the bundle.
        a: Text A. None: each image's best class.
        b: Text B. None: each image's best class besides A; without `classes`, the mean of a vocabulary.
        classes: Classes to choose A and B from: imagenet, imagenet-r, emoji, cifar10, the path of a file, or a list of names.
        pool: Vocabulary whose mean stands for B if neither B nor classes are given, and from which units get words if the bundle
            has none. None: that of the bundle's words, else the model's default.
        templates: Sentences with {} in place of the text, whose embeddings are averaged; imagenet, emoji or none.
        layers: Layers of the units. None: all of the bundle.
        head: Number of units for each image, those of largest absolute value.
        by: Order of the units: excess, the share less its mean over the bundle's images, or share.
        delete: Share of the units that are replaced by their means, one after the other.
        draws: Number of random orders with which the order is compared.
        limit: Number of images, the first ones.
        sample: Number of images, drawn at random.
        seed: Random seed for the sample and the random orders.
        model: The bundle's model, if it is loaded already.
        device: auto, cpu, cuda, cuda:1 or mps.
        cache: Read text embeddings from the cache, and write them to it.
        batch_size: Images per forward pass.
        workers: Threads that decode images. None: the number of cores, at most 8.
        strict: Raise an error for an unreadable or unusable image instead of a warning.
        progress: Write progress and messages to standard error; else messages go to the logger `cliptools`.

    Returns:
        A record for each image: margin, its parts, which add up to it, layers, heads, units and the curves of deletion; and in
        `images` the explanations with the shares of all units, maps and figures.

    Raises:
        UsageError: an argument is invalid, or the bundle lacks a layer.
        StreamError: the bundle has no units, or other effects.
        ModelError: the model is not available, or not the bundle's.
        TextError: texts are unknown or equal.
        CliptoolsError: no image can be read.
    """
    if a is None and b is not None:
        raise UsageError(f"b={b!r} without a; expected text A as well")
    request = ExplainRequest(
        texts=tuple(text for text in (a, b) if text is not None), classes=classes, pool=pool,
        templates=chosen_templates(templates),
        layers=chosen_layers(layers), head=head, by=by, delete=delete, draws=draws, limit=limit, sample=sample, seed=seed,
        model=model,
        device=device, cache=cache, reading=Reading(batch_size=batch_size, workers=workers, strict=strict),
    )  # fmt: skip
    request.check()
    with front_call(progress):
        source = recorded_source(bundle, ()) if images is None else open_any(images)
        return Explanations(explanations(bundle, source, request))


def explanations(bundle: Bundle, source: ImageSource, request: ExplainRequest, name: str = "the bundle") -> Iterator[Explanation]:
    """Yield the explanation of each image, in the order of the list.

    Raises:
        StreamError: the bundle has no units, or other effects.
        UsageError: `pool` has no use, or the bundle lacks a layer.
        CliptoolsError: no image can be read, or none is usable.
    """
    settings = bundle.header.settings
    if settings.get("effect") not in EFFECTS or not {"direction", "sign"} & set(bundle.tensors):
        kind = settings.get("effect")
        raise StreamError(f"{name}: a bundle of {kind} effects; {TOOL} needs second-order effects of neurons, or pooled effects")
    if request.pool is not None and "word" in bundle and (len(request.texts) != 1 or request.classes is not None):
        raise UsageError(f"--pool: {name} has words, and no single --text is compared with a mean; leave --pool out")
    record_fields = record_source(bundle)
    units = bundle if request.layers is None else bundle.select(by_layers(bundle, request.layers))
    if not units.units:
        raise StreamError(f"{name}: no units to explain by; was an earlier selection too narrow?")
    indices = choose(source, request.limit, request.sample, request.seed)
    work = _Work(units, request)
    skipped, count = Skipped(), 0
    screen = Screen[int](source.names.__getitem__, skipped.add, request.reading.strict)
    batches = read_batches(source, indices, work.model, request.reading, skipped)
    counted_batches = shown(batches, "images", len(indices), lambda batch: len(batch[0]))

    def explain_batch(numbers: Sequence[int], pictures: Tensor) -> list[Explanation | str]:
        return work.explain([source.names[number] for number in numbers], pictures)

    for numbers, results in in_halves(counted_batches, explain_batch):
        reasons = {row: result for row, result in enumerate(results) if isinstance(result, str)}
        for row in screen.places(numbers, reasons):
            result = results[row]
            assert isinstance(result, Explanation)  # images with reasons are not usable
            result.record.update({"settings": work.settings} | record_fields)
            yield result
            count += 1
    screen.require(count)
    summarise(f"{TOOL}: {count_of(count, 'image')}" + (f", {len(skipped)} skipped" if len(skipped) else ""))


class _Work:
    """The model, the units and the texts, from which images are explained."""

    def __init__(self, bundle: Bundle, request: ExplainRequest) -> None:
        self.bundle, self.request = bundle, request
        self.model = loaded_model_of(bundle, request.model, request.device)
        bundle_settings = BundleSettings(bundle, [])
        effect = effect_of(self.model, bundle_settings, [], 0)
        units = units_of(self.model, bundle_settings)
        self.explainer = Explainer(explained_tower(effect, set(units.unit[:, 0].tolist())), units, bundle.header.scaled)
        self.targets: Targets = open_targets(
            request.texts, request.classes, request.pool, request.templates, bundle, self.model, request.cache
        )
        self.words: UnitWords = unit_words(bundle, self.model, request.pool, request.cache)
        if self.model is not request.model:
            drop_text_tower(self.model)
        self.counts = step_counts(max(1, round(request.delete * bundle.units)))
        self._along: dict[int, tuple[Target, Along]] = {}  # by the identity of the target

    @property
    def settings(self) -> dict[str, Any]:
        """Settings on which the numbers of all records depend."""
        request, header = self.request, self.bundle.header.settings
        layers = None if request.layers is None else list(request.layers)
        settings = {"by": request.by, "units": self.bundle.units, "layers": layers, "effect": header["effect"]}
        settings |= {"scale": header.get("scale"), "delete": request.delete, "draws": request.draws, "seed": request.seed}
        return settings | self.targets.settings

    def explain(self, names: Sequence[str], pictures: Float[Tensor, "b 3 y x"]) -> list[Explanation | str]:
        """Return the explanation of each image, or the reason why it is not usable."""
        images = self.explainer.read(pictures)
        reasons = unusable(images.embedding, images.norm)
        usable = [row for row in range(len(names)) if row not in reasons]
        targets = dict(zip(usable, self.targets.of(images.embedding[usable]), strict=True)) if usable else {}
        return [
            reasons.get(row) or self._explain(name, images, row, targets[row], pictures[row]) for row, name in enumerate(names)
        ]

    def _explain(self, name: str, images: ReadImages, image: int, target: Target, pixels: Float[Tensor, "3 y x"]) -> Explanation:
        along = self._inner_products(target)
        shares = self.explainer.shares(images, image, along)
        weight = shares.excess if self.request.by == "excess" else shares.share
        order = weight.abs().argsort(descending=True, stable=True)[: self.request.head].tolist()
        chosen = [unit for unit in order if weight[unit] != 0]
        maps, first = self.explainer.maps(images, image, along, chosen)
        orders = random_orders(len(weight), self.request.draws, name, self.request.seed)
        deleted = deletion(self.explainer, images, image, along.v, weight, self.counts, orders)
        M = torch.nn.functional.normalize(images.embedding[image].cpu().double(), dim=0)
        similarity = target.t.cpu().double() @ M  # (2,)
        record: dict[str, Any] = {"image": name, "a": target.a, "b": target.b, "margin": rounded(shares.margin)}
        record |= {"similarity": {"a": rounded(similarity[0]), "b": rounded(similarity[1])}}
        record["parts"] = {part: rounded(value) for part, value in shares.parts.items()}
        record |= self._sums(shares)
        record["units"] = self._unit_records(images, image, along, shares, chosen, maps, first)
        record["deletion"] = _deletion_record(deleted)
        view = seen_picture(pixels, self.model.preprocessing)
        return Explanation(record, shares.share.float().numpy(), maps.float().numpy(), view)

    def _inner_products(self, target: Target) -> Along:
        """Return the inner products with a target's v; those of the last few targets are kept."""
        key = id(target)
        if key not in self._along:
            if len(self._along) >= KEPT_PAIRS:
                self._along.pop(next(iter(self._along)))
            self._along[key] = target, self.explainer.along(target.v)
        return self._along[key][1]

    def _sums(self, shares: ImageShares) -> dict[str, Any]:
        """Return the sums of the units' shares over layers and heads, and the heads' whole direct effects."""
        unit = torch.from_numpy(self.bundle["unit"])
        layers = [
            {"layer": layer, "share": rounded(shares.share[unit[:, 0] == layer].sum())}
            for layer in sorted(set(unit[:, 0].tolist()))
        ]
        columns = zip(self.explainer.tower.heads, shares.through.tolist(), shares.direct.tolist(), strict=True)
        heads = [head._asdict() | {"share": rounded(through), "direct": rounded(direct)} for head, through, direct in columns]
        return {"layers": layers, "heads": heads}

    def _unit_records(
        self,
        images: ReadImages,
        image: int,
        along: Along,
        shares: ImageShares,
        chosen: Sequence[int],
        maps: Tensor,
        first: Tensor,
    ) -> list[dict[str, Any]]:
        """Return the fields of the chosen units."""
        records = []
        for number, (unit, words) in enumerate(zip(chosen, self.words.of(chosen), strict=True)):
            record: dict[str, Any] = unit_keys(*self.bundle["unit"][unit].tolist())
            record |= {"share": rounded(shares.share[unit]), "mean": rounded(shares.mean[unit])}
            record |= {"excess": rounded(shares.excess[unit]), "norm": rounded(images.norm[image, unit])}
            record |= words
            path, head = self.explainer.path_shares(images, image, along, unit)
            carried = torch.zeros(len(self.explainer.tower.heads), dtype=torch.float64).index_add(0, head, path)
            strongest = carried.abs().argsort(descending=True, stable=True)[:SHOWN_HEADS].tolist()
            record["heads"] = [
                self.explainer.tower.heads[h]._asdict() | {"share": rounded(carried[h])} for h in strongest if carried[h] != 0
            ]
            row, column = divmod(int(maps[number].abs().argmax()), maps.shape[2])
            peak = {"row": row, "column": column, "share": rounded(maps[number, row, column])}
            records.append(record | {"grid": list(maps.shape[1:]), "peak": peak, "first_token": rounded(first[number])})
        return records


def _deletion_record(deleted: Deletion) -> dict[str, Any]:
    """Return the curves of an image as fields of its record."""
    curves = deleted.curves
    deviation = curves["random"].deviation
    return {
        "counts": deleted.counts.tolist(),
        "margins": {name: [rounded(value) for value in curve.margin.tolist()] for name, curve in curves.items()},
        "random_deviation": None if deviation is None else [rounded(value) for value in deviation.tolist()],
        "area": {name: rounded(curve.area) for name, curve in curves.items()},
    }
