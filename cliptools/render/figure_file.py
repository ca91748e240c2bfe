"""Figures of matplotlib, an optional package, as the bytes of files.

No display is needed. Equal values give equal bytes, because files hold neither a date nor a version. Text stays text: SVG files
name their font, and PDF files embed it.
"""

import functools
import importlib.util
import re
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from cliptools.console import warn_once
from cliptools.errors import CliptoolsError, UsageError

METADATA: dict[str, dict[str, None]] = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Fields that matplotlib leaves out, by format."""
KINDS = tuple(METADATA)
SOURCE_FIELD = {"png": "Source", "svg": "Description", "pdf": "Subject"}
WIDTH = 7.2  # inches: two columns of a paper
DPI = 200
MORE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans JP", "Noto Sans SC", "WenQuanYi Zen Hei", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei",
    "Malgun Gothic", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS",
)  # fmt: skip
"""Fonts that have the letters which matplotlib's own lacks; those that are installed are asked in this order."""
NO_LETTER = re.compile(r"Glyph (\d+) .*missing from")


class Theme(NamedTuple):
    """Colours of a figure."""

    ground: str
    ink: str
    faint: str
    rule: str
    towards: str
    """Colour of shares towards text A."""
    against: str
    """Colour of shares towards text B."""


LIGHT = Theme("#ffffff", "#1c1c1c", "#6b6b6b", "#d9d9d9", "#c0392b", "#2166ac")
DARK = Theme("#14171a", "#eeeeee", "#a3a8ad", "#3a3f44", "#f0796b", "#6fa8dc")


def check_figure(kind: str) -> None:
    """Check, before any work, that figures of this kind can be drawn.

    Raises:
        UsageError: an unknown kind.
        CliptoolsError: matplotlib is not installed.
    """
    if kind not in KINDS:
        raise UsageError(f"figures: expected one of {', '.join(KINDS)}, found {kind!r}")
    if importlib.util.find_spec("matplotlib") is None:
        raise CliptoolsError("figures need matplotlib: pip install 'cliptools[plot]'")


def kind_of(path: Path, option: str) -> str:
    """Return the kind of a figure's file by its ending, and check, before any work, that it can be drawn.

    Args:
        option: The option that names the file, for messages.

    Raises:
        UsageError: the ending is none of .png, .svg and .pdf.
        CliptoolsError: matplotlib is not installed.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise UsageError(f"{option} {path}: expected a name ending in .png, .svg or .pdf")
    check_figure(kind)
    return kind


def load_matplotlib() -> Any:
    """Return matplotlib with its module `figure`; callers check before that it is installed."""
    import matplotlib.figure

    return matplotlib


def figure_style(theme: Theme, size: float = 7.5) -> dict[str, Any]:
    """Return matplotlib's settings for figures in these colours.

    Args:
        size: Size of the text in points.
    """
    style: dict[str, Any] = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.ink)
    style |= {
        "font.family": _fonts(),
        "font.size": size,
        "axes.edgecolor": theme.faint,
        "axes.facecolor": theme.ground,
        "axes.linewidth": 0.6,
    }
    return style | {"svg.hashsalt": "cliptools", "svg.fonttype": "none", "pdf.fonttype": 42}


def figure_bytes(figure: Any, kind: str, dpi: int, source: str = "", **settings: Any) -> bytes:
    """Return a figure as the bytes of a file.

    Args:
        figure: A matplotlib.figure.Figure.
        kind: One of METADATA.
        dpi: Pixels per inch of pictures.
        source: Description of the figure's source, which SVG and PDF files hold; empty for none.
        settings: Further arguments of Figure.savefig.
    """
    buffer = BytesIO()
    described = {SOURCE_FIELD[kind]: source} if source else {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=METADATA[kind] | described, **settings)
    missing: dict[str, None] = {}
    for warning in caught:
        if found := NO_LETTER.match(str(warning.message)):
            missing[chr(int(found[1]))] = None
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing and kind != "svg":
        letters = " ".join(missing)
        warn_once(
            "letters", f"no font here has the letters {letters}: figures show boxes in their place; .svg keeps them as text"
        )
    return buffer.getvalue()


@functools.cache
def _fonts() -> list[str]:
    """Return matplotlib's own font, and those of MORE_FONTS that are installed."""
    installed = set(load_matplotlib().font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in MORE_FONTS if name in installed)]


def shortened(text: str, length: int) -> str:
    """Return a text of at most this many characters, cut after a whole word where possible; dollar signs are escaped."""
    if len(text) > length:
        cut = text[: length - 1]
        text = (cut[: cut.rindex(" ")] if " " in cut[length // 2 :] else cut).rstrip(", ") + "…"
    return text.replace("$", r"\$")
