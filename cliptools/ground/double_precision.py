"""float64 where it exists: on the CPU and on CUDA, but not on Apple's MPS, whose numbers go to the CPU for it."""

import torch
from torch import Tensor

WITHOUT_FLOAT64 = ("mps",)  # these also lack the decompositions of torch.linalg


def home(x: Tensor) -> Tensor:
    """The tensor itself, or a copy on the CPU where its device has no float64."""
    return x.cpu() if x.device.type in WITHOUT_FLOAT64 else x


def exact(x: Tensor) -> Tensor:
    """The tensor in float64, on its own device where that has it, else on the CPU."""
    return home(x).double()


def back(x: Tensor, like: Tensor) -> Tensor:
    """The tensor in the type of another, and then on its device."""
    return x.to(like.dtype).to(like.device)


def device_for(x: Tensor) -> torch.device:
    """The device of `home(x)`."""
    return torch.device("cpu") if x.device.type in WITHOUT_FLOAT64 else x.device
