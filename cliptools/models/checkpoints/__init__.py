"""Weights files in the forms people have them: read without running their code, their names as open_clip has them."""
