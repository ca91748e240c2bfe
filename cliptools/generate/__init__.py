"""Texts and pictures from generative models: characteristics of classes, descriptions, painted pictures."""
