"""What is computed from effects: words, concepts, spurious words, shift, ablation."""
