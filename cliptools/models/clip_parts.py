"""open_clip's classes, imported beside a torchvision that can be imported (torchvision_remedy.py).

Whatever needs one of them when it is imported takes it from here; what needs open_clip later calls ensure_torchvision first.
"""

from cliptools.torchvision_compat import ensure_torchvision

ensure_torchvision()

from open_clip import SimpleTokenizer  # noqa: E402 - the line above must come first
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME  # noqa: E402
from open_clip.model import CLIP  # noqa: E402
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet  # noqa: E402
from open_clip.transform import PreprocessCfg  # noqa: E402
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer  # noqa: E402

__all__ = [
    "CLIP",
    "HF_CONFIG_NAME",
    "HF_SAFE_WEIGHTS_NAME",
    "AttentionPool2d",
    "ModifiedResNet",
    "PreprocessCfg",
    "ResidualAttentionBlock",
    "SimpleTokenizer",
    "VisionTransformer",
]
