"""Texts: vocabularies, lists of classes, and the names of template sets, which help and completion need without a model."""

IMAGENET, EMOJI, BARE = "imagenet", "emoji", "none"
TEMPLATE_SETS = (IMAGENET, EMOJI, BARE)
