"""The page that clip-gallery writes: its own style and script, and all it shows as data that neither can end nor become code."""

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

SCRIPTS = ("parts.js", "grid.js", "units.js", "records.js", "view.js", "start.js")
"""One script in parts, each of which may speak of those before it."""
HIDDEN = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # in JSON they stand in texts only
JPEG = "data:image/jpeg;base64,"


def page(data: dict[str, Any], inline: bool) -> bytes:
    """The whole of index.html.

    Nothing of the data becomes markup: it stands in a data block as ASCII without `<`, `>` and `&`, and the script puts texts
    into the page as texts. A policy in the page lets only this script and this style run, and nothing be loaded from elsewhere.

    Args:
        data: What the script shows.
        inline: Whether the pictures are in the data, not in files beside the page.
    """
    style, script = _part("style.css"), _script()
    parts = {
        "policy": html.escape(_policy(style, script, inline)),
        "title": html.escape(f"{data.get('title', '')} · clip-gallery"),
        "style": style,
        "script": script,
        "data": data_block(data),
    }
    made = re.sub(r"@(\w+)@", lambda found: parts[found[1]], _part("page.html"))
    return made.encode("utf-8", "xmlcharrefreplace")


def data_block(data: Any) -> str:
    """JSON in ASCII that no reader of HTML can take for markup: `<`, `>` and `&` are escaped as JSON knows it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda found: HIDDEN[found[0]], text)


def inline_pictures(pictures: Sequence[bytes]) -> dict[str, Any]:
    """For the data: JPEGs in the page itself."""
    return {"prefix": JPEG, "pictures": [base64.b64encode(picture).decode("ascii") for picture in pictures]}


def picture_files(pictures: Sequence[bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """For the data: JPEGs in files beside the page, a thousand in a folder; and these files by name."""
    names = [f"{number // 1000:03d}/{number:06d}.jpg" for number in range(len(pictures))]
    return {"prefix": "pictures/", "pictures": names}, {
        f"pictures/{name}": picture for name, picture in zip(names, pictures, strict=True)
    }


def _policy(style: str, script: str, inline: bool) -> str:
    """What the page may do: run these two texts and show these pictures, nothing else."""
    pictures = "data:" if inline else "'self' file: data:"
    allowed = {"script-src": _hashed(script), "style-src": _hashed(style), "img-src": pictures}
    rest = "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    return "default-src 'none'; " + "; ".join(f"{key} {value}" for key, value in allowed.items()) + f"; {rest}"


def _hashed(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _script() -> str:
    return '"use strict";\n(() => {\n' + "\n".join(map(_part, SCRIPTS)) + "})();\n"


@cache
def _part(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")
