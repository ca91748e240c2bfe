"""Whether a model is fooled (paper 1, section 5.1): the margin of an image along v, and its share above zero."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F


def class_difference(predict: Float[Tensor, " d"], depict: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """v = M_text(predict) − M_text(depict), of the bare class names at unit norm; not normalised itself."""
    return F.normalize(predict, dim=0) - F.normalize(depict, dim=0)


def margin(image: Float[Tensor, "image d"], v: Float[Tensor, " d"]) -> Float[Tensor, " image"]:
    """⟨M(I), v⟩ with M(I) at unit norm: above zero, the model takes the image for the class it does not show.

    Args:
        image: Embeddings, of any norm.
        v: class_difference.
    """
    return F.normalize(image, dim=1) @ v


def among_closest(
    image: Float[Tensor, "image d"], names: Float[Tensor, "name d"], of_class: Bool[Tensor, "class name"], k: int
) -> Bool[Tensor, "image class"]:
    """Which classes a judge sees in an image: those of which a name is among the texts of the k closest classes.

    A class is as close as the closest of its names. Ties go to the class that stands first.

    Args:
        names: Embeddings of all names.
        of_class: Which names are a class's; each class has one at least.
    """
    similarity = F.normalize(image, dim=1) @ F.normalize(names, dim=1).T  # (image, name)
    each = similarity[:, None].masked_fill(~of_class, -torch.inf).amax(dim=2)  # (image, class)
    order = each.argsort(dim=1, descending=True, stable=True)[:, :k]
    return torch.zeros_like(each, dtype=torch.bool).scatter(1, order, True)
