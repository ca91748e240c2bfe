"""Pillow without its own words: its warnings, its log and libtiff's say of a damaged picture what the error says anyhow."""

import contextlib
import ctypes
import functools
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

from PIL import Image, _imaging

from cliptools.ground.shared_change import SharedChange

FILTERS = [
    ("error", None, Image.DecompressionBombWarning, None, 0),
    ("ignore", None, UserWarning, re.compile(r"PIL\."), 0),
]
"""As the module warnings keeps them: a bomb must not be decoded, and a damaged tag is no news for the user."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    logger, silent = logging.getLogger("PIL"), logging.NullHandler()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_filters())
        stack.enter_context(_silent_libtiff())
        logger.addHandler(silent)  # or errors that it logs would go to standard error
        stack.callback(logger.removeHandler, silent)
        yield


quiet_pillow = SharedChange(_quiet)
"""While this context lasts, a decompression bomb is an error, and damaged tags are no news; as it was after the last thread."""


@contextlib.contextmanager
def _filters() -> Iterator[None]:
    """Two filters in front of the others.

    They are put into the list that is in force, and taken out of it, rather than by catch_warnings, which threads must not use:
    it puts back a whole list, and with it whatever another thread has changed meanwhile.
    """
    changed: Any = warnings.filters
    changed[:0] = FILTERS
    try:
        yield
    finally:
        current: Any = warnings.filters
        for listed in {id(each): each for each in (changed, current)}.values():
            for each in FILTERS:
                with contextlib.suppress(ValueError):  # another list came into force meanwhile, without them
                    listed.remove(each)


@contextlib.contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Keep libtiff from writing to standard error by itself what it finds wrong with a file, which Pillow raises anyhow."""
    before = [(setter, setter(None)) for setter in _setters()]
    try:
        yield
    finally:
        for setter, handler in before:
            setter(handler)


@functools.cache
def _setters() -> tuple[Any, ...]:
    """libtiff's functions that take a handler and give the one before; none where they cannot be reached."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(_imaging.__file__)  # through which its functions are found, wherever Pillow has it from
        setters = (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler)
        for setter in setters:
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
        return setters
    return ()
