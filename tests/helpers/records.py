"""Comparison of the records of two runs."""

from typing import Any

import pytest


def check_close(ours: Any, theirs: Any) -> None:
    """Check that records are equal except for the last digits, which depend on the sizes of batches."""
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert list(ours) == list(theirs)
        for key in set(ours) - {"active"}:  # units whose norm is the threshold to the last digit come and go
            check_close(ours[key], theirs[key])
    elif isinstance(ours, list):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            check_close(mine, other)
    elif isinstance(ours, float):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
    else:
        assert ours == theirs
