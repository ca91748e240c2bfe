"""The mathematics: one idea per file, plain functions on tensors."""

from cliptools.ground.torchvision_remedy import ensure_before_open_clip

ensure_before_open_clip()  # which most of these files import, but not those that only choose among units
