"""The mathematics: one idea per file, plain functions on tensors."""
