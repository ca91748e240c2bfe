"""Figures of matplotlib, an optional package, as the bytes of files.

No display is needed. Equal values give equal bytes, because files hold neither a date nor a version.
"""

from io import BytesIO
from typing import Any

METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Fields that matplotlib leaves out, by format."""


def load_matplotlib() -> Any:
    """Return matplotlib with its module `figure`; callers check before that it is installed."""
    import matplotlib.figure

    return matplotlib


def figure_bytes(figure: Any, kind: str, dpi: int, **settings: Any) -> bytes:
    """Return a figure as the bytes of a file.

    Args:
        figure: A matplotlib.figure.Figure.
        kind: One of METADATA.
        dpi: Pixels per inch of pictures.
        settings: Further arguments of Figure.savefig.
    """
    buffer = BytesIO()
    figure.savefig(buffer, format=kind, dpi=dpi, metadata=METADATA[kind], **settings)
    return buffer.getvalue()
