"""The mathematics: one idea per file, plain functions on tensors."""

from cliptools.ground.torchvision_remedy import ensure_torchvision

ensure_torchvision()  # before any of these files imports open_clip
