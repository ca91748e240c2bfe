"""Where in an image a text is: heat maps over patches by several methods, and what becomes of them.

A method is two functions (heat_maps.py): `look` at images once, then `scores` of any texts at every patch.

The names of the segmentation methods, by kind of image tower. Imports nothing, so that options can name them.
"""

BY_NEURONS = ("neurons", "signed", "effects")
VIT = (*BY_NEURONS, "attention", "rollout", "gradcam", "chefer", "textspan")
BY_PAIRS = ("pairs", "neurons", "heads")
RESNET = (*BY_PAIRS, "maskclip", "qqkk", "values")
ALL = tuple(dict.fromkeys((*VIT, *RESNET)))
