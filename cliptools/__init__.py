"""Descriptions of single neurons of CLIP in words: the library under the clip-* commands."""

__version__ = "0.1.0"
