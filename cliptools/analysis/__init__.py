"""Computations on effects: words, concepts, spurious words, shift, ablation."""
