"""Weights files of many forms, read without running their code and renamed to open_clip's names."""
