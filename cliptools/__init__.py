"""What single neurons of CLIP do, in words: the library under the clip-* commands."""

__version__ = "0.1.0"
