"""Embeddings of class texts for many classes at once: what all have in common taken away (arXiv 2509.19943)."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cliptools.ground.double_precision import back, exact
from cliptools.ground.errors import TextError

CenterClasses = Literal["classes", "none"]
NOTHING = 1e-6  # what is left of a unit vector that equals the mean up to rounding


def class_texts(t: Float[Tensor, "text d"], center: CenterClasses = "classes") -> Float[Tensor, "text d"]:
    """Unit-norm texts, their mean subtracted and of unit norm again; with `none` as they are.

    Raises:
        TextError: a text that equals the mean, as a single one does.
    """
    if center == "none":
        return t
    centred = exact(t) - exact(t).mean(0)
    if bool((centred.norm(dim=1) < NOTHING).any()):
        raise TextError(f"--classes: of {len(t)} text(s), one equals their mean: nothing is left of it; try --center none")
    return back(F.normalize(centred, dim=1), t)
