"""Names of sets of templates, for help texts and completion that load no model."""

IMAGENET, EMOJI, BARE = "imagenet", "emoji", "none"
TEMPLATE_SETS = (IMAGENET, EMOJI, BARE)
