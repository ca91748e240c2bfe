"""Segmentation: heat maps of texts over patches by several methods, and the masks and label maps made from them.

This file holds the names of the methods, by kind of image tower. It imports nothing, so that options can use the names without
loading torch. The methods themselves are in vit_methods.py (from images and their texts to scores), resnet_methods.py (from
images to logits of a fixed set of texts) and pooled_methods.py (both, for ViTs that pool by attention).
"""

BY_NEURONS = ("neurons", "signed", "effects")
VIT = (*BY_NEURONS, "attention", "rollout", "gradcam", "chefer", "textspan")
BY_PAIRS = ("pairs", "neurons", "heads")
RESNET = (*BY_PAIRS, "maskclip", "qqkk", "values")
PAIRS_OF_TOKENS = (*BY_PAIRS, "effects")
"""Methods by pairs of a ViT that pools by attention, whose bundles of neurons have the methods BY_NEURONS."""
ALL = tuple(dict.fromkeys((*VIT, *RESNET)))
