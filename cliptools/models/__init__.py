"""Models: where their weights are, what fits, and what they compute apart from effects."""
