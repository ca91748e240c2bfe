"""Which segmentation methods a model has: its image tower decides."""

from torch import nn

from cliptools.ground.errors import UsageError
from cliptools.ground.segmentation_names import RESNET, VIT
from cliptools.methods.choice import pools_by_attention
from cliptools.methods.resnet_paths import supported_resnet
from cliptools.methods.vit_paths import supported_tower


def is_resnet(clip: nn.Module) -> bool:
    """Whether the methods are those of neuron-head pairs; else they are those of a ViT's neurons.

    Raises:
        ModelError: a tower that neither is for.
    """
    if pools_by_attention(clip):
        supported_resnet(clip)
        return True
    supported_tower(clip)
    return False


def method_of(asked: str | None, resnet: bool) -> str:
    """The method asked for, by default the first of the tower's own.

    Raises:
        UsageError: a method of the other kind of tower.
    """
    own, kind = (RESNET, "CLIP-ResNet") if resnet else (VIT, "CLIP-ViT")
    if asked is not None and asked not in own:
        raise UsageError(f"--method {asked}: the bundle's model is a {kind}, expected one of {', '.join(own)}")
    return asked or own[0]
