"""Images for which a model outputs NaN, infinity, zero or huge numbers: named, counted and left out of all statistics.

Half precision ends at 65504, and a damaged layer may output anything. A single NaN would spread into every statistic.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.console import count_of, note, warn
from cliptools.errors import CliptoolsError, ImageError

LEAST, LARGEST = 1e-15, 1e15  # range of lengths whose squares, and sums of many squares, fit into float32
ENOUGH = 256  # unusable images without a usable one after which the run ends

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


def unusable(
    embedding: Float[Tensor, "b d"], *outputs: Float[Tensor, "b ..."], scale: Float[Tensor, " b"] | None = None
) -> dict[int, str]:
    """Return the rows of a batch that hold NaN, infinity, no direction or numbers too large to be squared, with the reason.

    Args:
        embedding: M(I), or the embedding of a text.
        outputs: Further outputs of the model, which may be zero.
        scale: Factors by which `outputs` will be multiplied.
    """
    length = _length(embedding)
    usable = (length > LEAST) & (length < LARGEST)  # both are False for NaN
    for numbers in outputs:
        usable = usable & (_length(numbers) * (1 if scale is None else scale) < LARGEST)
    if bool(usable.all()):
        return {}
    return {row: _reason(embedding[row], float(length[row])) for row in (~usable).nonzero()[:, 0].tolist()}


def _length(numbers: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Return the Euclidean norm of each row; it is not finite if a number in the row is not."""
    dtype = torch.promote_types(numbers.dtype, torch.float32)
    return torch.linalg.vector_norm(numbers, dim=tuple(range(1, numbers.ndim)), dtype=dtype)  # (b, ...) -> (b,)


def _reason(embedding: Float[Tensor, " d"], length: float) -> str:
    if not bool(embedding.isfinite().all()):
        return "the model's output holds NaN or infinity"
    if length <= LEAST:
        return "the model's output is zero"
    if not length < LARGEST:
        return "the model's output is too large to compute with"
    return "the model's inner numbers are NaN, infinite or too large to compute with"


class SpoiltError(CliptoolsError):
    """An image to be left out is already part of the statistics."""


class Screen(Generic[Item]):
    """Leaves out unusable images: the same ones in every pass, no matter in which pass they turn out to be unusable."""

    def __init__(
        self,
        name: Callable[[Item], str] = "image {}".format,
        tell: Callable[[str, str], object] | None = None,
        strict: bool = True,
        *,
        passed: bool = False,
    ) -> None:
        """
        Args:
            name: Returns the name of an image for messages.
            tell: Called with the name of every image left out and the reason [default: writes a warning].
            strict: Raise an error for the first unusable image.
            passed: Some images are already known to be usable.
        """
        self._name, self._tell, self._strict = name, tell or _warn, strict
        self._reasons: dict[Item, str] = {}
        self._unreported: list[Item] = []  # reported once an image is usable; if none is, one error replaces them
        self._any_usable = passed
        self._included = self._late = False

    def __len__(self) -> int:
        """Number of images left out."""
        return len(self._reasons)

    def places(self, images: Sequence[Item], reasons: Mapping[int, str], taken: bool = False) -> Sequence[int]:
        """Return the positions in the batch of the images to keep.

        Args:
            reasons: Reasons why images are unusable, by position.
            taken: Some numbers of these images are already part of the statistics.

        Raises:
            ImageError: an image is unusable, with `strict`.
            CliptoolsError: none of many images is usable.
        """
        for place, reason in reasons.items():
            self._refuse(images[place], reason, taken)
        if not self._reasons:
            self._any_usable = True
            return range(len(images))
        stay = [place for place, image in enumerate(images) if image not in self._reasons]
        self._any_usable = self._any_usable or bool(stay)
        if self._any_usable:
            self._report_all()
        elif len(self._reasons) >= ENOUGH:
            raise self._unusable_error()
        return stay

    def _refuse(self, image: Item, reason: str, taken: bool) -> None:
        if image in self._reasons:
            return
        if self._strict:
            raise ImageError(f"{self._name(image)}: {reason}")
        self._reasons[image] = reason
        self._unreported.append(image)
        self._late = self._late or self._included or taken

    def _report_all(self) -> None:
        for image in self._unreported:
            self._tell(self._name(image), self._reasons[image])
        self._unreported.clear()

    def _unusable_error(self) -> CliptoolsError:
        image, reason = next(iter(self._reasons.items()))
        return CliptoolsError(
            f"not one of {count_of(len(self._reasons), 'image')} is usable (first {self._name(image)}: {reason}): "
            "the weights are damaged, or too large for --precision (of clip-effects); try bf16 or fp32"
        )

    def require(self, count: int) -> None:
        """Check at the end of a pass that some image was usable.

        Args:
            count: Number of images measured.

        Raises:
            CliptoolsError: no image was usable, or none could be read.
        """
        if not count and self._reasons:
            raise self._unusable_error()
        if not count:
            raise CliptoolsError("not one image could be read")
        self._report_all()

    def end_look(self) -> None:
        """End a pass: from now on, the images kept are part of the statistics.

        Raises:
            SpoiltError: an image was left out of only some of the statistics.
        """
        if self._late:
            image = next(reversed(self._reasons))
            raise SpoiltError(f"{self._name(image)}: {self._reasons[image]} now, but not in an earlier pass; run again")
        self._report_all()
        self._included = True

    def retry(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`; start it again whenever an image to be left out was already part of the statistics."""
        while True:
            self._included = self._late = False
            count_before = len(self)
            try:
                return work()
            except SpoiltError:
                note(f"measuring again without {count_of(len(self) - count_before, 'image')} that had been included")


def _warn(name: str, reason: str) -> None:
    warn(f"{name}: skipped, {reason}")
