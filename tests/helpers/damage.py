"""Decode pictures with random damage in a process that can be measured: python tests/faults/damage.py COUNT SEED."""

import io
import json
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator

from PIL import Image

from cliptools.errors import ImageError
from cliptools.images.decode import decode

FLAGS = (b"\xff\xff", b"\x00\x00", b"\x7f\xff", b"\xff\x7f", b"\xff\xff\xff\xff", b"\x00\x00\x00\x80", b"\x7f\xff\xff\xff")
"""Numbers at the ends of what a field can say."""


def valid_pictures() -> Iterator[tuple[str, bytes]]:
    """Return one picture of each supported kind: modes, compressions, several frames, blocks of EXIF and colour profiles."""
    base = Image.effect_noise((40, 30), 60).convert("RGB").rotate(9)
    frames = {"save_all": True, "append_images": [base.rotate(20 * i) for i in range(1, 4)]}
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    modes = {mode: base.convert(mode) for mode in ("1", "L", "P", "CMYK", "RGBA", "LA", "I;16")}
    yield from (
        ("jpeg", encoded(base, "JPEG", exif=exif)),
        ("jpeg progressive", encoded(base, "JPEG", progressive=True, icc_profile=bytes(500))),
        ("jpeg cmyk", encoded(modes["CMYK"], "JPEG")),
        ("jpeg grey", encoded(modes["L"], "JPEG", quality=20)),
        ("png", encoded(base, "PNG", exif=exif)),
        ("png palette", encoded(modes["P"], "PNG", transparency=3)),
        ("png 1", encoded(modes["1"], "PNG")),
        ("png 16", encoded(modes["I;16"], "PNG")),
        ("png rgba", encoded(modes["RGBA"], "PNG")),
        ("apng", encoded(base, "PNG", **frames)),
        ("gif", encoded(modes["P"], "GIF")),
        ("gif animated", encoded(base, "GIF", **frames)),
        ("webp", encoded(base, "WEBP", exif=exif)),
        ("webp lossless", encoded(modes["RGBA"], "WEBP", lossless=True)),
        ("webp animated", encoded(base, "WEBP", **frames)),
        ("bmp", encoded(base, "BMP")),
        ("bmp palette", encoded(modes["P"], "BMP")),
        ("tga", encoded(base, "TGA", compression="tga_rle")),
        ("ico", encoded(base, "ICO", sizes=[(16, 16), (24, 24)])),
        ("ppm", encoded(base, "PPM")),
        ("jpeg 2000", encoded(base, "JPEG2000")),
        ("avif", encoded(base, "AVIF")),
        *((f"tiff {name}", encoded(base, "TIFF", compression=name, exif=exif)) for name in (None, "jpeg", "tiff_lzw")),
        *((f"tiff {mode}", encoded(modes[mode], "TIFF", compression="packbits")) for mode in ("CMYK", "I;16", "P")),
        ("tiff deflated", encoded(modes["LA"], "TIFF", compression="tiff_adobe_deflate")),
        ("tiff fax", encoded(modes["1"], "TIFF", compression="group4")),
        ("tiff frames", encoded(base, "TIFF", **frames)),
    )  # fmt: skip


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return a picture as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def flipped(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def overwritten(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    for _ in range(rng.randint(1, 3)):
        flag, at = rng.choice(FLAGS), rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 200))
        data[at : at + len(flag)] = flag


def cut(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    del data[rng.randrange(len(data)) :]


def removed(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 64)]


def doubled(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at, size = rng.randrange(len(data)), rng.randint(1, 400)
    data[at:at] = data[at : at + size]


def zeroed(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    at, size = rng.randrange(len(data)), rng.randint(1, 200)
    data[at : at + size] = bytes(len(data[at : at + size]))


def spliced(data: bytearray, rng: random.Random, others: list[bytes]) -> None:
    other = rng.choice(others)
    data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]


KINDS: tuple[Callable[[bytearray, random.Random, list[bytes]], None], ...] = (
    flipped, overwritten, cut, removed, doubled, zeroed, spliced,
)  # fmt: skip


def main(count: int, seed: int) -> None:
    """Decode so many pictures and report the result; an error other than ImageError ends the process with the seed."""
    whole = dict(valid_pictures())
    assert all(decode(io.BytesIO(data)).mode == "RGB" for data in whole.values())
    names, others = list(whole), list(whole.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, slowest = 0, 0.0
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        name = names[number % len(names)]
        data = bytearray(whole[name])
        for _ in range(rng.randint(1, 2)):
            if data:
                rng.choice(KINDS)(data, rng, others)
        begin = time.perf_counter()
        try:
            assert decode(io.BytesIO(bytes(data))).mode == "RGB"
            read += 1
        except ImageError as error:
            assert str(error) and str(error).isprintable(), (name, number, str(error))
        except BaseException as error:
            raise SystemExit(f"{name}, number {number} of seed {seed}: {error!r}") from error
        slowest = max(slowest, time.perf_counter() - begin)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"tried": count, "read": read, "slowest": slowest, "grown": grown * 1024}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
