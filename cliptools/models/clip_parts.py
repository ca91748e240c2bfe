"""Classes of open_clip, imported by library_patches.py, which makes sure that torchvision can be imported.

Modules that need one of these classes at import time import it from here; code that needs open_clip later uses import_open_clip.
"""

from cliptools.library_patches import import_open_clip

import_open_clip()

from open_clip import SimpleTokenizer  # noqa: E402 - only after the call above
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME  # noqa: E402
from open_clip.model import CLIP  # noqa: E402
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet  # noqa: E402
from open_clip.timm_model import TimmModel  # noqa: E402
from open_clip.transform import PreprocessCfg  # noqa: E402
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock, VisionTransformer  # noqa: E402

__all__ = [
    "CLIP",
    "HF_CONFIG_NAME",
    "HF_SAFE_WEIGHTS_NAME",
    "AttentionPool2d",
    "CustomResidualAttentionBlock",
    "ModifiedResNet",
    "PreprocessCfg",
    "ResidualAttentionBlock",
    "SimpleTokenizer",
    "TimmModel",
    "VisionTransformer",
]
