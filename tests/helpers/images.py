"""Inputs and checks of test_images.py that other tests share."""

import io

from PIL import Image


def picture(shade: int = 0, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", size, (shade, 255 - shade, 40))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
