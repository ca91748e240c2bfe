"""Texts: vocabularies and lists of classes; here their names, and those of template sets, which help and completion need."""

IMAGENET, EMOJI, BARE = "imagenet", "emoji", "none"
TEMPLATE_SETS = (IMAGENET, EMOJI, BARE)
VOCABULARY_NAMES = ("emoji", "imagenet", "words10k", "words30k")
CLASS_LIST_NAMES = ("cifar10", "emoji", "imagenet", "imagenet-r")
PAIR_LIST_NAMES = ("cifar10",)
