"""The names of the segmentation methods, by kind of image tower. Imports nothing, so that options can name them."""

BY_NEURONS = ("neurons", "signed", "effects")
VIT = (*BY_NEURONS, "attention", "rollout", "gradcam", "chefer", "textspan")
BY_PAIRS = ("pairs", "neurons", "heads")
RESNET = (*BY_PAIRS, "maskclip", "qqkk", "values")
ALL = tuple(dict.fromkeys((*VIT, *RESNET)))
