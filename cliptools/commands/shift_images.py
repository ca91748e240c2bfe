"""The images of clip-shift: those that choose units, and all of them, measured."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cliptools.commands.shift_units import Batches, Watched
from cliptools.ground.counted import count_of
from cliptools.ground.progress import progress, summarise

if TYPE_CHECKING:
    from cliptools.commands.shifting import Read
    from cliptools.ground.groups import Groups
    from cliptools.ground.models import LoadedModel


class Images:
    """The images asked for, to be read more than once; each that cannot be read is told of once."""

    def __init__(self, groups: "Groups", model: "LoadedModel", options: dict[str, Any]) -> None:
        from cliptools.ground.images import choose
        from cliptools.ground.loader import Skipped
        from cliptools.ground.unusable import Screen

        self.groups, self.model, self.options, self.skipped = groups, model, options, Skipped()
        self.screen = Screen[int](groups.source.names.__getitem__, self.skipped.add, options["strict"])
        self.indices = choose(groups.source, options["limit"], options["sample"], options["seed"])

    def look(self) -> Batches:
        """Some of them, drawn over all, to choose units by."""
        import numpy as np

        from cliptools.methods.concept_choice import LOOKED_AT

        count = min(LOOKED_AT, len(self.indices))
        drawn = np.random.default_rng(self.options["seed"]).choice(len(self.indices), count, replace=False)
        return self.batches([self.indices[i] for i in sorted(drawn.tolist())])

    def batches(self, indices: Sequence[int]) -> Batches:
        """These, preprocessed."""
        from cliptools.ground.loader import load_batches

        options = self.options
        return load_batches(
            self.groups.source, indices, self.model.transform,
            batch_size=options["batch_size"], workers=options["workers"], strict=options["strict"], skipped=self.skipped,
        )  # fmt: skip


def read_shares(images: Images, watched: Watched) -> "Iterator[Read]":
    """What is measured on the images, a batch at a time.

    Raises:
        CliptoolsError: not one image can be read, or none is usable.
    """
    from cliptools.ground.halving import in_halves

    count = 0
    read = progress(images.batches(images.indices), "images", len(images.indices), lambda batch: len(batch[0]))
    for some, (measures, reasons) in in_halves(read, lambda _, pictures: watched.measure(pictures)):
        stay = list(images.screen.places(some, reasons))
        if stay:
            yield [some[place] for place in stay], type(measures)(*(part[stay] for part in measures))
        count += len(stay)
    images.screen.require(count)
    skips = f", {len(images.skipped)} skipped" if len(images.skipped) else ""
    summarise(
        f"clip-shift: {count_of(count, 'image')}{skips} in {count_of(len(images.groups.names), 'group')}, "
        f"{count_of(len(watched.concepts), 'concept')}"
    )
