"""The page of clip-gallery: its style and script, and its content as data that cannot become markup or code.

By hand, because frameworks for pages need a server, a build, or code that the page's content security policy forbids.
"""

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
"""The parts of the script, each of which may use the parts before it."""
HIDDEN = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}  # in JSON these characters occur only in texts
JPEG = "data:image/jpeg;base64,"


def page(data: dict[str, Any], inline: bool) -> bytes:
    """Return the bytes of index.html.

    The data cannot become markup: they are in a data block as ASCII without `<`, `>` and `&`, and the script inserts texts as
    text nodes. A content security policy allows only this script and this style, and loads nothing from elsewhere.

    Args:
        data: The content that the script shows.
        inline: True if the pictures are in the data, False if they are in files beside the page.
    """
    style, script = _part("style.css"), _script()
    parts = {
        "policy": html.escape(_policy(style, script, inline)),
        "title": html.escape(f"{data.get('title', '')} · clip-gallery"),
        "style": style,
        "script": script,
        "data": data_block(data),
    }
    document = re.sub(r"@(\w+)@", lambda match: parts[match[1]], _part("page.html"))
    return document.encode("utf-8", "xmlcharrefreplace")


def data_block(data: Any) -> str:
    """Return JSON in ASCII with `<`, `>` and `&` escaped, so that no HTML parser takes it for markup."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return re.sub("[<>&]", lambda match: HIDDEN[match[0]], text)


def inline_pictures(pictures: Sequence[bytes]) -> dict[str, Any]:
    """Return the data of JPEGs inside the page."""
    return {"prefix": JPEG, "pictures": [base64.b64encode(picture).decode("ascii") for picture in pictures]}


def picture_files(pictures: Sequence[bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the data of JPEGs in files beside the page, 1000 per folder, and the files by name."""
    names = [f"{number // 1000:03d}/{number:06d}.jpg" for number in range(len(pictures))]
    return {"prefix": "pictures/", "pictures": names}, {
        f"pictures/{name}": picture for name, picture in zip(names, pictures, strict=True)
    }


def _policy(style: str, script: str, inline: bool) -> str:
    """Return the content security policy, which allows only this style, this script and these pictures."""
    pictures = "data:" if inline else "'self' file: data:"
    sources = {"script-src": _hash_source(script), "style-src": _hash_source(style), "img-src": pictures}
    directives = "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
    return "default-src 'none'; " + "; ".join(f"{key} {value}" for key, value in sources.items()) + f"; {directives}"


def _hash_source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"


def _script() -> str:
    return '"use strict";\n(() => {\n' + "\n".join(map(_part, SCRIPTS)) + "})();\n"


@cache
def _part(name: str) -> str:
    return (files(__package__) / name).read_text("utf-8")
