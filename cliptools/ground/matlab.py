"""Variables of MATLAB files of version 5, which hold no code."""

from pathlib import Path
from typing import Any

import numpy as np

from cliptools.ground.errors import StreamError


def read_variables(path: Path, of: str, *wanted: str) -> list[np.ndarray]:
    """Variables of a file, each as a list.

    Args:
        of: What the file is of, for messages.

    Raises:
        StreamError: no such file, not of MATLAB 5, or one of them is missing.
    """
    from scipy.io import loadmat

    try:
        held: dict[str, Any] = loadmat(path, variable_names=wanted, squeeze_me=True, chars_as_strings=True)
    except Exception as error:  # scipy's reader raises nearly anything on damaged data
        raise StreamError(f"{path}: expected a MATLAB file of {of} ({error or type(error).__name__})") from None
    if missing := [name for name in wanted if name not in held]:
        raise StreamError(f"{path}: no variable {missing[0]}, expected a file of {of}")
    return [np.atleast_1d(held[name]) for name in wanted]
