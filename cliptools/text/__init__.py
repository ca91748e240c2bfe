"""Vocabularies and lists of classes. This file holds their names and those of template sets, for help and completion."""

IMAGENET, EMOJI, BARE = "imagenet", "emoji", "none"
TEMPLATE_SETS = (IMAGENET, EMOJI, BARE)
VOCABULARY_NAMES = ("emoji", "scenes", "imagenet", "words10k", "words30k")
CLASS_LIST_NAMES = ("cifar10", "emoji", "imagenet", "imagenet-r")
PAIR_LIST_NAMES = ("cifar10",)
