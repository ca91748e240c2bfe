"""A package that is installed and does not import: which, and why, in one line."""

import sys
import traceback

from cliptools.ground.errors import first_line
from cliptools.launch import NEEDED


def import_failure(error: BaseException) -> str | None:
    """Return the message for an error that was raised while a package was imported; None for any other.

    Whatever a package raises comes through here: ImportError, OSError of a library that is not there, and others.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_code.co_name == "<module>" and name not in ("cliptools", "importlib", "__main__", ""):
            return (
                f"the package {name} of this Python cannot be imported ({first_line(error)}): "
                f"{sys.executable} -m pip install --force-reinstall {NEEDED.get(name, name)}"
            )
    return None
