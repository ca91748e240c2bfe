"""Images for which a model gives no numbers to compute with: named, counted, and left out of everything alike.

Half precision ends at 65504, and a damaged layer may give anything. One NaN would spread into every statistic that takes it in.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from cliptools.console import count_of, note, warn
from cliptools.errors import CliptoolsError, ImageError

LEAST, LARGEST = 1e-15, 1e15  # lengths between which squares, and sums of many of them, stay within float32
ENOUGH = 256  # images of which none is usable: then none of the others will be

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


def unusable(
    embedding: Float[Tensor, "b d"], *more: Float[Tensor, "b ..."], scale: Float[Tensor, " b"] | None = None
) -> dict[int, str]:
    """Return the rows of a batch that hold NaN, infinity, no direction or numbers too large to be squared, with the reason.

    Args:
        embedding: M(I), or a text's.
        more: Numbers that the model gives besides; they may be zero.
        scale: What these are going to be multiplied by.
    """
    length = _length(embedding)
    usable = (length > LEAST) & (length < LARGEST)  # neither is true of NaN
    for numbers in more:
        usable = usable & (_length(numbers) * (1 if scale is None else scale) < LARGEST)
    if bool(usable.all()):
        return {}
    return {row: _reason(embedding[row], float(length[row])) for row in (~usable).nonzero()[:, 0].tolist()}


def _length(numbers: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Euclidean norm of each row: one pass over the numbers, and not finite if any of them is not."""
    dtype = torch.promote_types(numbers.dtype, torch.float32)
    return torch.linalg.vector_norm(numbers, dim=tuple(range(1, numbers.ndim)), dtype=dtype)


def _reason(embedding: Float[Tensor, " d"], length: float) -> str:
    if not bool(embedding.isfinite().all()):
        return "the model's output holds NaN or infinity"
    if length <= LEAST:
        return "the model's output is zero"
    if not length < LARGEST:
        return "the model's output is too large to compute with"
    return "the model's inner numbers are NaN, infinite or too large to compute with"


class SpoiltError(CliptoolsError):
    """An image that is to be left out has been taken in before."""


class Screen(Generic[Item]):
    """Leaves out images that are not usable: the same in every look, whichever look has found that."""

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
            name: Of an image, for messages.
            tell: Is told the name of each image left out and the reason [default: a warning].
            strict: The first such image is an error.
            passed: Some images are known to be usable.
        """
        self._name, self._tell, self._strict = name, tell or _warn, strict
        self._reasons: dict[Item, str] = {}
        self._untold: list[Item] = []  # until one is usable: of none there is one error to come
        self._passed = passed
        self._taken = self._late = False

    def __len__(self) -> int:
        """Images left out."""
        return len(self._reasons)

    def places(self, images: Sequence[Item], reasons: Mapping[int, str], taken: bool = False) -> Sequence[int]:
        """Return where in the batch the images stand that stay.

        Args:
            reasons: By place, of those that are not usable.
            taken: A part of these images' numbers has been taken in already.

        Raises:
            ImageError: strict, and one is not usable.
            CliptoolsError: many images, and not one of them is.
        """
        for place, reason in reasons.items():
            self._refuse(images[place], reason, taken)
        if not self._reasons:
            self._passed = True
            return range(len(images))
        stay = [place for place, image in enumerate(images) if image not in self._reasons]
        self._passed = self._passed or bool(stay)
        if self._passed:
            self._tell_all()
        elif len(self._reasons) >= ENOUGH:
            raise self._none()
        return stay

    def _refuse(self, image: Item, reason: str, taken: bool) -> None:
        if image in self._reasons:
            return
        if self._strict:
            raise ImageError(f"{self._name(image)}: {reason}")
        self._reasons[image] = reason
        self._untold.append(image)
        self._late = self._late or self._taken or taken

    def _tell_all(self) -> None:
        for image in self._untold:
            self._tell(self._name(image), self._reasons[image])
        self._untold.clear()

    def _none(self) -> CliptoolsError:
        image, reason = next(iter(self._reasons.items()))
        return CliptoolsError(
            f"not one of {count_of(len(self._reasons), 'image')} is usable (first {self._name(image)}: {reason}): "
            "the weights are damaged, or too large for --precision (of clip-effects); try bf16 or fp32"
        )

    def require(self, count: int) -> None:
        """At the end of a look: some image must have been usable.

        Raises:
            CliptoolsError: none was; that the model is the reason, where it is.
        """
        if not count and self._reasons:
            raise self._none()
        if not count:
            raise CliptoolsError("not one image could be read")
        self._tell_all()

    def end_look(self) -> None:
        """What has stayed so far is taken in now, and is to stay.

        Raises:
            SpoiltError: an image has been left out of a part only.
        """
        if self._late:
            image = next(reversed(self._reasons))
            raise SpoiltError(f"{self._name(image)}: {self._reasons[image]} now, but not when it was looked at before; run again")
        self._tell_all()
        self._taken = True

    def again(self, work: Callable[[], Result]) -> Result:
        """Return the result of `work`, which is begun anew as often as an image to be left out was taken in before."""
        while True:
            self._taken = self._late = False
            known = len(self)
            try:
                return work()
            except SpoiltError:
                note(f"measuring again without {count_of(len(self) - known, 'image')} that had been taken in")


def _warn(name: str, reason: str) -> None:
    warn(f"{name}: skipped, {reason}")
