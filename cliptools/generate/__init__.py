"""Texts and pictures that models make: descriptions of classes, captions, painted pictures."""
