"""How the embedded models were made, and how they are measured."""

from cliptools.ground.torchvision_remedy import ensure_torchvision

ensure_torchvision()
