"""Decoding: modes, depths, orientation, and errors with their reasons."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.images import encoded, picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cliptools.errors import ImageError
from cliptools.images.decode import decode, is_picture
from cliptools.images.loader import open_images


def test_sixteen_bits_do_not_clip_to_white() -> None:
    steps = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    for kind in ("PNG", "TIFF", "PPM"):
        read = np.asarray(decode(io.BytesIO(encoded(Image.fromarray(steps), kind))))
        assert (read == np.round(steps / 257)[..., None]).all(), kind


def test_real_valued_pictures_keep_their_range() -> None:
    steps = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    assert (np.asarray(decode(io.BytesIO(encoded(Image.fromarray(steps), "TIFF")))) == np.round(steps * 255)[..., None]).all()
    wide = np.asarray(decode(io.BytesIO(encoded(Image.fromarray(steps * 4000 - 1000), "TIFF"))))
    assert (wide.min(), wide.max()) == (0, 255)
    with pytest.raises(ImageError, match="NaN"):
        decode(io.BytesIO(encoded(Image.fromarray(steps * np.nan), "TIFF")))


def test_orientation_of_the_camera_is_applied() -> None:
    image = Image.new("RGB", (8, 4), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    upright = decode(io.BytesIO(encoded(image, "PNG", exif=exif)))
    assert upright.size == (4, 8)
    assert upright.getpixel((3, 0)) == (255, 255, 255)


def test_transparency_lies_on_white_and_other_modes_become_rgb() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert decode(io.BytesIO(encoded(clear))).getpixel((0, 0)) == (255, 255, 255)
    assert decode(io.BytesIO(encoded(Image.new("LA", (4, 4), (0, 128))))).getpixel((0, 0)) == (127, 127, 127)
    palette = picture().convert("P")
    assert decode(io.BytesIO(encoded(palette, transparency=palette.getpixel((0, 0))))).getpixel((0, 0)) == (255, 255, 255)
    assert decode(io.BytesIO(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"))).getpixel((0, 0)) == pytest.approx(
        (254, 0, 0), abs=3
    )
    for mode in ("1", "L", "P", "CMYK", "YCbCr"):
        assert decode(io.BytesIO(encoded(picture().convert(mode), "TIFF"))).mode == "RGB"


def test_of_an_animation_the_first_frame() -> None:
    frames = [picture(shade) for shade in (0, 250)]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode(io.BytesIO(data)).getpixel((0, 0))[0] < 30


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that announces a size and has hardly any data."""
    chunks = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(bytes(100))
    packed = (struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"hello" * 50, "not an image"),
        (encoded(picture(size=(200, 200)), "JPEG")[:600], "(?i)truncated"),
        (encoded(picture(size=(64, 64)))[:80], "truncated|damaged|broken"),
        (png_header(12_000, 8_000), "bomb"),  # 96 million: beyond Pillow's warning
        (png_header(60_000, 60_000), "bomb"),  # beyond Pillow's error
        (png_header(40_000, 2), "elongated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_unreadable_pictures_are_refused_in_one_line(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "x.png").write_bytes(data)
    for read in (lambda: decode(io.BytesIO(data)), lambda: open_images([str(tmp_path)]).load(0)):
        with pytest.raises(ImageError, match=reason) as caught:
            read()
        assert "\n" not in str(caught.value)


GOOD = [
    encoded(picture(size=(20, 20)).rotate(7), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "TGA", "ICO", "PPM")
]


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_damage_is_survived_or_refused_never_worse(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    try:
        assert decode(io.BytesIO(bytes(damaged[: len(damaged) * (100 - cut // 2) // 100]))).mode == "RGB"
    except ImageError as error:
        assert str(error)


def test_what_is_taken_for_a_picture() -> None:
    assert all(map(is_picture, ("a.jpg", "x/b.JPEG", "c.d.Png", "shot.webp")))
    assert not any(map(is_picture, ("a.txt", ".a.png", "x/.b.jpg", ".git/c.png", "k.masks.png", "K.MASKS.PNG", "png", "a.eps")))
