"""Inputs and checks of test_sheet.py that other tests share."""

import base64
import io
import re
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from cliptools.images.relocate import thumbnail_tensors
from cliptools.io.bundle import Bundle, json_tensor
from cliptools.io.header import Header
from cliptools.render.contact_sheet import CELL, GAP, MARGIN, TEXT_WIDTH

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250), (250, 0, 250), (120, 60, 0), (0, 60, 120)]


WORDS = [
    "cat",
    "an extraordinarily long description of a thing that no column holds",
    "café",
    "dog",
    "owl",
    "boat",
    "sun",
    "tree",
    "sea",
]


class Colours:
    """A source of plain pictures of one colour each, with different shapes."""

    names: list[str] = [f"{i}.png" for i in range(len(COLOURS))]  # noqa: RUF012

    def __len__(self) -> int:
        return len(COLOURS)

    def load(self, index: int) -> Image.Image:
        return Image.new("RGB", (40 + 10 * index, 60), COLOURS[index])


def synthetic(units: int = 5, words: bool = True, thumbnails: bool = True) -> Bundle:
    """Return a bundle whose unit u has the top images u, u + 1, …."""
    rng = np.random.default_rng(0)
    tensors = {
        "unit": np.array([[6 + u % 2, 100 + u, -1] for u in range(units)], np.int32).reshape(units, 3),
        "direction": rng.normal(size=(units, 4)).astype(np.float32),
        "mean": np.zeros((units, 4), np.float32),
        "top_norm": -np.sort(-rng.random((units, 6)).astype(np.float32)),
        "top_image": np.array([[(u + t) % len(COLOURS) for t in range(6)] for u in range(units)], np.int32).reshape(units, 6),
        "threshold": np.ones(units, np.float32),
        "explained": np.linspace(0.2, 0.9, units).astype(np.float32),
        "explained_all": np.full(units, 0.5, np.float32),
        "images": json_tensor(Colours.names),
    }
    if words:
        tensors["word"] = np.tile(np.arange(len(WORDS), dtype=np.int32), (units, 1))
        tensors["coefficient"] = np.tile(np.linspace(1, -0.6, len(WORDS), dtype=np.float32), (units, 1))
        tensors["residual"] = np.linspace(0.9, 0.1, units).astype(np.float32)
        tensors["words"] = json_tensor({"texts": WORDS, "digest": "0"})
    if thumbnails:
        tensors |= thumbnail_tensors(Colours(), range(len(COLOURS)), 96)
    header = Header("neurons", {"name": "emoji-vit2", "pretrained": None, "sha256": "0"}, {"count": 8}, {})
    return Bundle(header, tensors)


def cell(sheet: Image.Image, row: int, place: int) -> tuple[int, int, int]:
    """Return the colour in the middle of a picture's place."""
    top = sheet.height - MARGIN - (row + 1) * (CELL + 4 * GAP) if row < 0 else first_row(sheet) + row * (CELL + 4 * GAP)
    return sheet.getpixel((MARGIN + TEXT_WIDTH + GAP + place * (CELL + GAP) + CELL // 2, top + 2 * GAP + CELL // 2))


def first_row(sheet: Image.Image) -> int:
    """Return the position of the first ruled line."""
    return next(
        y for y in range(MARGIN, sheet.height) if sheet.getpixel((MARGIN, y)) == (0xE3, 0xE3, 0xE3) == sheet.getpixel((200, y))
    )


def near(found: tuple[int, int, int], wanted: tuple[int, int, int]) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) < 12


def pictures_of_svg(data: bytes) -> list[np.ndarray]:
    """Return the pictures in an SVG, in the order in which they are drawn."""
    link = "{http://www.w3.org/1999/xlink}href"
    elements = ElementTree.fromstring(data).iter("{http://www.w3.org/2000/svg}image")
    parts = [base64.b64decode(element.attrib[link].partition(",")[2]) for element in elements]
    return [np.asarray(Image.open(io.BytesIO(part)).convert("RGB")) for part in parts]


def pictures_of_pdf(data: bytes) -> list[np.ndarray]:
    """Return the pictures in a PDF of matplotlib, whose streams are the data of PNG files."""
    found = []
    for entry, body in re.findall(rb"<<([^<]*/Subtype /Image.*?)>>\s*stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL):
        assert b"/DeviceRGB" in entry and b"/Indexed" not in entry
        size = [int(re.search(b"/" + side + rb" (\d+)", entry)[1]) for side in (b"Width", b"Height")]
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
        png = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part)) for kind, part in chunks
        )
        found.append(np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))[::-1])  # rows of a PDF begin at the bottom
    return found
