"""Segmentation: heat maps of texts over patches by several methods, and the masks and label maps made from them.

A method is two functions (vit_methods.py): `look` at images once, then `scores` of any texts at every patch.

The names of the segmentation methods, by kind of image tower. Imports nothing, so that options can name them.
"""

BY_NEURONS = ("neurons", "signed", "effects")
VIT = (*BY_NEURONS, "attention", "rollout", "gradcam", "chefer", "textspan")
BY_PAIRS = ("pairs", "neurons", "heads")
RESNET = (*BY_PAIRS, "maskclip", "qqkk", "values")
ALL = tuple(dict.fromkeys((*VIT, *RESNET)))
