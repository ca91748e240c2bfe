"""Computations on effects: words, concepts, spurious words, shift, ablation.

This file holds names of changes that options use, and imports nothing, so that --help does not load torch.
"""

ABLATE = ("all", "large", "small", "none", "joint")
"""Ablations of clip-ablate."""
RECONSTRUCT = ("pc", "words")
"""Reconstructions of clip-ablate."""
WORDS_ALONG = ("direction", "texts", "unit-texts")
"""Vectors that clip-ablate projects on when it reconstructs effects from words."""
ABLATE_SEED = 5_000_000
"""Random seed of the scenes that clip-ablate renders: neither training nor clip-effects draws these by default."""
