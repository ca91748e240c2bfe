"""One mask in every mode, file format and EXIF orientation of Pillow is always read as the same array."""

import io
import itertools
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.advgen_input import inside
from helpers.masked_images import read, write_gtsegs
from PIL import Image, ImageOps

from cliptools.errors import CliptoolsError, ImageError
from cliptools.images.decode import decode, header
from cliptools.images.segmentation.label_maps import IGNORED, LabelledImage, Numbering, labelled_in_folders, labelled_scene
from cliptools.images.segmentation.mask_pixels import mask_pixels, read_mask
from cliptools.images.segmentation.masked_image import turned
from cliptools.images.segmentation.sources import masked_images

RNG = np.random.default_rng(11)
TRUTH = np.zeros((18, 26), bool)
TRUTH[2:9, 3:17] = TRUTH[5:14, 12:15] = True
LABELS = np.where(TRUTH, RNG.integers(1, 5, TRUTH.shape), 0)
ENCODED = {"PNG": {}, "TIFF": {}, "BMP": {}, "GIF": {}, "PPM": {}, "JPEG": {"quality": 95}}


def grey(low: int = 0, high: int = 255) -> Image.Image:
    return Image.fromarray(np.where(TRUTH, high, low).astype(np.uint8))


def palette(index: np.ndarray, colours: list[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(index.astype(np.uint8))
    image.putpalette([part for colour in colours for part in colour])
    return image


def in_mode(mode: str) -> Image.Image:
    """Return TRUTH as a picture of a mode, white on black."""
    by_way_of = {"LAB": "RGB", "HSV": "RGB", "PA": "LA", "La": "LA", "RGBa": "RGBA"}
    image = grey()
    return image.convert(by_way_of[mode]).convert(mode) if mode in by_way_of else image.convert(mode)


def stored(image: Image.Image, form: str, **options: Any) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer


MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F")
MODES += ("I;16", "I;16B", "I;16L", "I;16N")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_memory_and_in_every_file_that_holds_it(mode: str) -> None:
    image = in_mode(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(mask_pixels(image).shown, TRUTH)
    formats = 0
    for form, options in ENCODED.items():
        try:
            file = stored(image, form, **options)
        except (OSError, ValueError, KeyError):  # not a mode of this format
            continue
        formats += 1
        pixels = read_mask(file)
        np.testing.assert_array_equal(pixels.shown, TRUTH, err_msg=form)
        assert (pixels.numbers is None) == (form in ("JPEG", "GIF") or mode in ("RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"))
        assert bool(pixels.remarks) == (form == "JPEG")
    assert formats or mode in ("La", "RGBa", "HSV", "I;16N")  # of which no file is written


NUMBERED: dict[str, Image.Image] = {
    "L": Image.fromarray(LABELS.astype(np.uint8)),
    "LA": Image.fromarray(np.stack([LABELS, RNG.integers(0, 256, TRUTH.shape)], -1).astype(np.uint8), "LA"),
    "P": palette(LABELS, [(0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 0), (224, 224, 192)]),
    "I": Image.fromarray(LABELS.astype(np.int32)),
    "I;16": Image.fromarray(LABELS.astype("<u2")),
    "I;16B": Image.fromarray(LABELS.astype(">u2")),
    "F": Image.fromarray(LABELS.astype(np.float32)),
}


@pytest.mark.parametrize("mode", NUMBERED)
def test_numbers_of_every_mode(mode: str) -> None:
    image, formats = NUMBERED[mode], 0
    pixels = mask_pixels(image, "labels")
    assert image.mode == mode and pixels.numbers is not None and (pixels.numbers == LABELS).all()
    for form in ("PNG", "TIFF", "BMP"):
        try:
            file = stored(image, form)
        except (OSError, ValueError):
            continue
        numbers, formats = read_mask(file, "labels").numbers, formats + 1
        assert numbers is not None and (numbers == LABELS).all(), form
    assert formats


@pytest.mark.parametrize("scale", [1, 7, 256, 4096, 65535])
def test_sixteen_bits_are_not_cut(scale: int) -> None:
    for order in ("<u2", ">u2"):
        image = Image.fromarray((TRUTH * scale).astype(order))
        for pixels in (mask_pixels(image), read_mask(stored(image, "PNG")), read_mask(stored(image, "TIFF"))):
            assert pixels.numbers is not None and (pixels.numbers == TRUTH * scale).all() and (pixels.shown == TRUTH).all()


def test_real_numbers() -> None:
    noise = RNG.random(TRUTH.shape) * 0.3
    for values in (TRUTH * 1.0, TRUTH * 255.0, np.where(TRUTH, 0.6 + noise, noise), np.where(TRUTH, 160 + noise, 90 * noise)):
        image = Image.fromarray(values.astype(np.float32))
        np.testing.assert_array_equal(mask_pixels(image).shown, TRUTH)
        np.testing.assert_array_equal(read_mask(stored(image, "TIFF")).shown, TRUTH)
    for values, message in (
        (np.where(TRUTH, np.nan, 0), "NaN or infinity, expected numbers from 0"),
        (np.where(TRUTH, np.inf, 0), "NaN or infinity"),
        (np.where(TRUTH, 300.5, 0), "fractions from 0 to 300.5"),
        (np.where(TRUTH, 0.5, -0.25), "fractions from -0.25 to 0.5"),
        (np.where(TRUTH, 1, -1), "number -1, expected 0 for the background"),
    ):
        with pytest.raises(ImageError, match=f"its mask: {message}"):
            read_mask(stored(Image.fromarray(values.astype(np.float32)), "TIFF"))


def with_alpha(colour: Image.Image, alpha: np.ndarray) -> Image.Image:
    image = colour.copy()
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def test_transparency() -> None:
    """Complete or no transparency has no meaning; transparency around an object is the mask; a transparent pixel is no object."""
    photograph = Image.fromarray(RNG.integers(1, 256, (*TRUTH.shape, 3), dtype=np.uint8))
    black = Image.new("RGB", photograph.size)
    border = np.ones_like(TRUTH)
    border[:, :5] = border[0] = False
    cases = {
        "opaque": (with_alpha(grey(), np.full(TRUTH.shape, 255)), TRUTH),
        "faint": (with_alpha(grey(), np.full(TRUTH.shape, 9)), TRUTH),
        "hidden": (with_alpha(grey(), np.zeros(TRUTH.shape)), TRUTH),
        "cut out": (with_alpha(photograph, TRUTH * 255), TRUTH),
        "cut out of grey": (with_alpha(photograph.convert("L").point(lambda v: max(v, 1)), TRUTH * 200), TRUTH),
        "black on nothing": (with_alpha(black, TRUTH * 255), TRUTH),
        "white on white": (with_alpha(Image.new("L", photograph.size, 255), TRUTH * 255), TRUTH),
        "erased ground": (with_alpha(grey().convert("RGB"), TRUTH * 255), TRUTH),
        "border": (with_alpha(grey(), border * 255), TRUTH & border),
    }
    for name, (image, expected) in cases.items():
        for pixels in (mask_pixels(image), read_mask(stored(image, "PNG")), read_mask(stored(image, "TIFF"))):
            np.testing.assert_array_equal(pixels.shown, expected, err_msg=name)
            assert bool(pixels.remarks) == (name in ("cut out", "cut out of grey", "black on nothing", "white on white")) or (
                "not transparent" in "".join(pixels.remarks)
            )
    hole = np.asarray(photograph).copy()
    hole[4:6, 4:6] = 0
    with pytest.raises(ImageError, match="transparent, black and coloured pixels"):
        read_mask(stored(with_alpha(Image.fromarray(hole), TRUTH * 255), "PNG"))


def test_transparent_values_of_files() -> None:
    """The cases are tRNS of grey, palette and colour PNGs, and GIF's transparent index."""
    index, colours = np.where(TRUTH, 3, 0), [(255, 255, 255), (9, 9, 9), (0, 0, 0), (0, 0, 250)]
    for image, form, options in (
        (grey(), "PNG", {"transparency": 0}),
        (grey(), "PNG", {"transparency": 7}),
        (grey().convert("1"), "PNG", {"transparency": 0}),
        (Image.fromarray((TRUTH * 60000).astype("<u2")), "PNG", {"transparency": 0}),
        (grey().convert("RGB"), "PNG", {"transparency": (0, 0, 0)}),
        (palette(index, colours), "PNG", {"transparency": 0}),
        (palette(index, colours), "PNG", {"transparency": bytes([0, 255, 255, 90])}),
        (palette(np.where(TRUTH, 3, 1), colours), "PNG", {"transparency": bytes([255, 0])}),
        (palette(index, colours), "GIF", {"transparency": 0}),
    ):
        np.testing.assert_array_equal(read_mask(stored(image, form, **options)).shown, TRUTH, err_msg=f"{image.mode} {options}")
    labels = read_mask(stored(NUMBERED["P"], "PNG", transparency=bytes([0, 255, 80])), "labels").numbers
    assert labels is not None and (labels == LABELS).all()


def voc_palette() -> list[tuple[int, int, int]]:
    """Return Pascal VOC's colours, in which the bits of an index are spread over three channels."""
    bit = lambda number, place: number >> place & 1  # noqa: E731
    return [
        tuple(sum(bit(i, 3 * level + channel) << (7 - level) for level in range(3)) for channel in range(3))  # type: ignore[misc]
        for i in range(256)
    ]


def test_palettes() -> None:
    white, black, red = (255, 255, 255), (0, 0, 0), (250, 10, 10)
    voc = voc_palette()
    assert voc[15] == (192, 128, 128) and voc[255] == (224, 224, 192)
    padded = [black, red] + [black] * 30
    for index, colours in (
        (np.where(TRUTH, 15, 0), voc),  # the ground is index 0, and black
        (np.where(TRUTH, 0, 1), [white, black]),  # sorted anew: the ground is black, whatever its index
        (np.where(TRUTH, 2, 5), [black, black, white, black, black, black]),
        (np.where(TRUTH, 0, 5), [red, black, white, black, black, black]),
        (np.where(TRUTH, 20, 0), padded),  # a palette that ends before the labels do
        (np.where(TRUTH, 1, 0), [white, red]),  # no black at all: index 0
        (np.where(TRUTH, LABELS, 0), [(120, 120, 120), (180, 120, 120), (6, 230, 230), (80, 50, 50), (4, 200, 3)]),
    ):
        image = palette(index, colours)
        for pixels in (mask_pixels(image), *(read_mask(stored(image, form)) for form in ("PNG", "TIFF", "BMP"))):
            np.testing.assert_array_equal(pixels.shown, TRUTH, err_msg=str(colours[:3]))
            assert pixels.numbers is not None
        numbers = read_mask(stored(image, "PNG")).numbers
        assert numbers is not None and (numbers == index).all()
    assert mask_pixels(palette(np.full(TRUTH.shape, 15), voc)).shown.all()
    assert not mask_pixels(palette(np.zeros(TRUTH.shape), voc)).shown.any()
    assert read_mask(stored(grey(255, 255), "GIF")).shown.all() and not read_mask(stored(grey(0, 0), "GIF")).shown.any()


def test_several_frames_and_lossy_files() -> None:
    for form in ("TIFF", "GIF", "PNG"):
        file = stored(grey(), form, save_all=True, append_images=[grey(255, 0), grey(255, 255)])
        pixels = read_mask(file)
        assert (pixels.shown == TRUTH).all() and "several frames" in pixels.remarks[0], form
    for quality in (30, 75):
        lossy = read_mask(stored(grey().resize((260, 180), Image.Resampling.NEAREST), "JPEG", quality=quality))
        assert (lossy.shown == np.kron(TRUTH, np.ones((10, 10), bool))).mean() > 0.999
    coloured = Image.fromarray(np.where(TRUTH[..., None], [200, 0, 0], 0).astype(np.uint8))
    with pytest.raises(ImageError, match=r"a coloured JPEG, .* expected a grey one, or PNG"):
        read_mask(stored(coloured, "JPEG"))
    for data, message in ((b"no picture", "cannot be read"), (stored(grey(), "WEBP").getvalue(), r"expected PNG, BMP, TIFF")):
        with pytest.raises(ImageError, match=message):
            read_mask(io.BytesIO(data))


def png(bits: int, kind: int, rows: np.ndarray) -> io.BytesIO:
    """Return a PNG with full bytes per row, written by hand, because Pillow writes neither 4-bit grey nor 16-bit colours."""
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    width = rows.shape[1] * 8 // (bits * {0: 1, 2: 3, 4: 2, 6: 4}[kind])
    header = struct.pack(">IIBBBBB", width, len(rows), bits, kind, 0, 0, 0)
    parts = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + parts)


def test_layouts_of_which_pillow_keeps_less() -> None:
    nibbles = (LABELS[:, ::2] << 4 | LABELS[:, 1::2]).astype(np.uint8)
    small = read_mask(png(4, 0, nibbles))
    assert (small.shown == TRUTH).all() and small.numbers is None and "scaled to 8 bits" in small.numberless
    for kind, channels in ((2, 3), (4, 2), (6, 4)):
        wide = np.repeat((TRUTH * 65535)[..., None], channels, 2)
        wide[..., -1] = 65535 if channels != 3 else wide[..., -1]
        rows = wide.astype(">u2").reshape(len(wide), -1).view(np.uint8)
        assert (read_mask(png(16, kind, rows)).shown == TRUTH).all()
        faint = np.where(wide == 65535, 3, 0)
        with pytest.raises(ImageError, match="colours, or grey with alpha, of 16 bits; expected"):
            read_mask(png(16, kind, faint.astype(">u2").reshape(len(wide), -1).view(np.uint8)))
    scaled = read_mask(io.BytesIO(b"P5 26 18 20\n" + (LABELS * 3).astype(np.uint8).tobytes()))
    assert (scaled.shown == TRUTH).all() and scaled.numbers is None


# ---- EXIF orientation ----

SHAPES = {"wide": (18, 26), "square": (20, 20)}


def exif(orientation: int | None) -> dict[str, Any]:
    if orientation is None:
        return {}
    tags = Image.Exif()
    tags[0x0112] = orientation
    return {"exif": tags}


def lay(
    folder: Path, name: str, picture: tuple[str, int | None], mask: tuple[str, int | None], lie: str, shape: str
) -> np.ndarray:
    """Return a picture and its mask with EXIF orientations, the mask stored or upright, and the upright truth."""
    rng = np.random.default_rng(sum(map(ord, name)))
    truth = rng.random(SHAPES[shape]) < 0.4
    colours = np.where(truth[..., None], [200, 30, 30], [30, 30, 200]).astype(np.uint8)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (ending, orientation), (mask_ending, own) = picture, mask
    Image.fromarray(colours).save(
        folder / "images" / f"{name}.{ending}",
        **exif(orientation),
        **({"subsampling": 0, "quality": 95} if ending == "jpg" else {}),
    )
    shown = oracle(truth, orientation)
    kept = shown if lie == "upright" else truth
    if own is not None:  # the file's pixels are such that turning them by its own tag gives those shown
        kept = oracle(shown, {6: 8, 8: 6}.get(own, own))
    Image.fromarray(np.where(kept, 255, 0).astype(np.uint8)).save(folder / "masks" / f"{name}.{mask_ending}", **exif(own))
    return shown


def oracle(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    """Return pixels that Pillow has rotated."""
    image = Image.fromarray(pixels.astype(np.uint8))
    tags = image.getexif()
    tags[0x0112] = orientation or 1
    return np.asarray(ImageOps.exif_transpose(image)).astype(pixels.dtype)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_pillows(orientation: int) -> None:
    np.testing.assert_array_equal(turned(LABELS, orientation), oracle(LABELS, orientation))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ending", ["jpg", "png", "tif"])
def test_masks_lie_on_pictures_of_all_orientations(tmp_path: Path, shape: str, ending: str) -> None:
    """Masks of stored pixels, masks with EXIF tags, and upright masks that their size or an option identifies."""
    truths = {}
    for orientation, (own, mask_ending) in itertools.product(
        (None, *range(1, 9)), ((None, "png"), (3, "png"), (6, "tif"), (1, "png"))
    ):
        name = f"{orientation}-{own}"
        truths[name] = lay(tmp_path, name, (ending, orientation), (mask_ending, own), "stored", shape)
    for image in read(masked_images(tmp_path)):
        np.testing.assert_array_equal(image.masks[0], truths[image.name], err_msg=image.name)
        assert np.array_equal(np.asarray(image.picture)[..., 0] > 115, truths[image.name]), image.name
        turns = image.name[-4:] == "None" and image.name[0] in "2345678"
        assert bool(image.remarks) == turns
        if turns:
            told = shape == "wide" and image.name[0] in "5678"
            assert ("by their size" in image.remarks[0]) == told and ("--mask-pixels upright" in image.remarks[0]) != told
    for name in list(truths):  # the same masks, saved as shown
        truths[name] = lay(
            tmp_path / "upright", name, (ending, int(name[0]) if name[0] != "N" else None), ("png", None), "upright", shape
        )
    for image in read(masked_images(tmp_path / "upright", basis="upright")):
        np.testing.assert_array_equal(image.masks[0], truths[image.name], err_msg=image.name)
        assert not image.remarks


def test_masks_whose_size_cannot_tell_lie_as_those_whose_size_does(tmp_path: Path) -> None:
    def remarks(folder: Path) -> dict[str, tuple[str, ...]]:
        images = read(masked_images(folder))
        for image in images:
            np.testing.assert_array_equal(image.masks[0], truths[folder.name, image.name])
        return {image.name: image.remarks for image in images}

    truths = {}
    for name, lies in (("shown", ("upright", "upright")), ("stored", ("stored", "stored")), ("mixed", ("stored", "upright"))):
        for stem, orientation, lie, shape in (
            ("a", 3, lies[0], "wide"),
            ("b", 6, lies[1], "wide"),
            ("c", 8, lies[0], "wide"),
            ("d", 5, lies[0], "square"),
        ):
            truths[name, stem] = lay(tmp_path / name, stem, ("jpg", orientation), ("png", None), lie, shape)
    shown = remarks(tmp_path / "shown")
    assert "as others of the folder are" in shown["a"][0] and shown["d"] == shown["a"] and not shown["b"] and not shown["c"]
    assert "cannot tell" in remarks(tmp_path / "stored")["d"][0] and "cannot tell" in remarks(tmp_path / "mixed")["a"][0]
    lay(tmp_path / "wrong", "a", ("jpg", 6), ("png", None), "upright", "wide")
    (error,) = masked_images(tmp_path / "wrong", basis="stored")
    assert str(error) == (
        "a: the image has 18 × 26 pixels (turned by EXIF orientation 6), its mask 26 × 18 (turned by EXIF orientation 6)"
    )


# ---- void, labels, .mat ----


def save(folder: Path, mask: Image.Image, **options: Any) -> Path:
    for part, image in (("images", grey().convert("RGB")), ("masks", mask)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        image.save(folder / part / "a.png", **(options if part == "masks" else {}))
    return folder


def test_void_pixels(tmp_path: Path) -> None:
    void = np.zeros_like(TRUTH)
    void[1:10, 2] = void[9, 3:8] = True
    voc = np.where(void, 255, np.where(TRUTH, 15, 0))
    wide = np.where(void, 65535, np.where(TRUTH, 300, 0)).astype(np.uint16)
    for number, (mask, ignored) in enumerate(
        ((palette(voc, voc_palette()), 255), (Image.fromarray(voc.astype(np.uint8)), 255), (Image.fromarray(wide), 65535))
    ):
        folder = save(tmp_path / str(number), mask)
        (image,) = read(masked_images(folder, ignored=(ignored, 77)))
        assert image.void is not None and (image.void == void).all() and (image.masks[0] == (TRUTH & ~void)).all()
        (without,) = read(masked_images(folder))
        assert without.void is None and (without.masks[0] == (TRUTH | void)).all()
        assert any("--ignore 255" in remark for remark in without.remarks) == (ignored == 255)
    faded = Image.fromarray(np.where(TRUTH, RNG.integers(1, 256, TRUTH.shape), 0).clip(0, 255).astype(np.uint8))
    faded.putpixel((3, 2), 255)
    assert "grey edges" in read(masked_images(save(tmp_path / "faded", faded)))[0].remarks[0]
    assert "no object" in read(masked_images(save(tmp_path / "empty", grey(0, 0))))[0].remarks[0]
    trimap = np.where(void, 3, np.where(TRUTH, 1, 2)).astype(np.uint8)  # as in Oxford's pets: 2 is the ground
    white = Image.fromarray(np.where(TRUTH[..., None], np.uint8([255, 0, 0]), np.uint8(255)))
    for number, (mask, ignored) in enumerate(((Image.fromarray(trimap), ()), (Image.fromarray(trimap), (3,)), (white, ()))):
        assert (
            "show no background" in read(masked_images(save(tmp_path / f"filled{number}", mask), ignored=ignored))[0].remarks[-1]
        )
    for number, mask in enumerate((grey(255, 255), Image.fromarray(trimap - 1), grey(1, 1))):
        (whole,) = read(masked_images(save(tmp_path / f"unfilled{number}", mask)))
        assert not any("no background" in remark for remark in whole.remarks)
    (coloured,) = masked_images(save(tmp_path / "coloured", grey().convert("RGB")), ignored=(255,))
    assert "a: its mask is of colours (mode RGB), expected a palette or grey picture" in str(coloured)
    (nothing,) = masked_images(save(tmp_path / "nothing", grey(255, 255)), ignored=(255,))
    assert "a: no pixel of its mask counts: all are 255 (--ignore)" in str(nothing)


def labelled(folder: Path, truth: Image.Image, ending: str = "png", **options: Any) -> LabelledImage | ImageError:
    for part, image, suffix in (("images", grey().convert("RGB"), "png"), ("labels", truth, ending)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        image.save(folder / part / f"a.{suffix}", **(options if part == "labels" else {}))
    (reading,) = labelled_in_folders(folder / "images", folder / "labels", Numbering(4))
    return reading


@pytest.mark.parametrize("mode", NUMBERED)
def test_label_pictures_of_every_mode(tmp_path: Path, mode: str) -> None:
    reading = labelled(tmp_path, NUMBERED[mode], "tif" if mode in ("I", "F") else "png")
    assert isinstance(reading, LabelledImage) and (reading.labels == LABELS).all() and not reading.remarks


def test_labels_beyond_eight_bits_and_void(tmp_path: Path) -> None:
    numbers = 1000 + LABELS
    numbers[0, :4] = 255
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    grey().convert("RGB").save(tmp_path / "images/a.png")
    Image.fromarray(numbers.astype(np.uint16)).save(tmp_path / "labels/a.png")
    (reading,) = labelled_in_folders(tmp_path / "images", tmp_path / "labels", Numbering(4, 1001))
    assert isinstance(reading, LabelledImage) and (reading.labels == np.where(numbers == 255, IGNORED, LABELS)).all()


def test_label_pictures_that_hold_no_numbers(tmp_path: Path) -> None:
    for number, (image, ending, message) in enumerate(
        (
            (grey().convert("RGB"), "png", r"a: its labels are colours \(mode RGB\), expected a palette or grey picture"),
            (in_mode("CMYK"), "tif", r"colours \(mode CMYK\)"),
            (Image.fromarray(LABELS.astype(np.float32) + 0.5), "tif", "its labels are fractions, expected"),
            (NUMBERED["P"], "gif", "the colours of a GIF, which renumbers them"),
            (NUMBERED["L"], "jpg", r"its labels are smeared \(JPEG\)"),
            (Image.fromarray(np.full(TRUTH.shape, np.nan, np.float32)), "tif", "its labels: NaN or infinity"),
            (NUMBERED["L"].resize((9, 9)), "png", "26 × 18 pixels, its labels 9 × 9"),
        )
    ):
        with pytest.raises(ImageError, match=message):
            raise labelled(tmp_path / str(number), image, ending)  # type: ignore[misc]


def test_label_pictures_turn_with_their_pictures(tmp_path: Path) -> None:
    for orientation in (3, 6):
        reading = None
        for part, image in (("images", grey().convert("RGB")), ("labels", NUMBERED["P"])):
            (tmp_path / part).mkdir(exist_ok=True)
            image.save(tmp_path / part / "a.png", **(exif(orientation) if part == "images" else {}))
        (reading,) = labelled_in_folders(tmp_path / "images", tmp_path / "labels", Numbering(4))
        assert isinstance(reading, LabelledImage) and (reading.labels == oracle(LABELS, orientation)).all() and reading.remarks


@pytest.mark.parametrize("dtype", ["u1", "?", "i4", "u2", "f4", "f8"])
def test_gtsegs_of_other_types_and_by_rows(tmp_path: Path, dtype: str) -> None:
    image = RNG.integers(0, 256, (*TRUTH.shape, 3), dtype=np.uint8)
    scaled = {"f4": image / 255, "u2": image.astype(np.uint16) * 257}.get(dtype, image)
    scaled = scaled.astype(np.float32 if dtype == "f4" else dtype if dtype not in ("?", "u1") else np.uint8)
    for name, turn in (("matlab", False), ("rows", True)):
        path = tmp_path / f"{name}.mat"
        mask = TRUTH.astype(dtype)
        write_gtsegs(path, [scaled.transpose(2, 1, 0) if turn else scaled], [mask.T if turn else mask], mask_type=dtype)
        (reading,) = read(masked_images(path))
        assert (reading.masks[0] == TRUTH).all() and np.abs(np.asarray(reading.picture).astype(int) - image).max() == 0
    write_gtsegs(tmp_path / "void.mat", [image], [np.where(TRUTH, 1, 255)], mask_type="u1")
    (reading,) = read(masked_images(tmp_path / "void.mat", ignored=(255,)))
    assert reading.void is not None and (reading.void == ~TRUTH).all() and (reading.masks[0] == TRUTH).all()


@pytest.mark.parametrize("mode", ["L", "LA", "P", "I;16", "F"])
def test_scenes_read_their_masks_by_the_same_rules(tmp_path: Path, mode: str) -> None:
    """Masks are as clip-scenes writes them, or saved again by another program."""
    ending = "tif" if mode == "F" else "png"
    record = {"key": "s", "names": ["cat", "dog", "pizza", "boat"], "image": "s.png", "masks": f"s.{ending}"}
    (tmp_path / "scenes.jsonl").write_text(json.dumps(record))
    grey().convert("RGB").save(tmp_path / "s.png")
    NUMBERED[mode].save(tmp_path / f"s.{ending}")
    (scene,) = read(masked_images(tmp_path))
    assert scene.texts == tuple(record["names"]) and all((scene.masks[i] == (i + 1 == LABELS)).all() for i in range(4))
    (scene,) = read(masked_images(tmp_path, ignored=(2,)))
    assert scene.texts == ("cat", "pizza", "boat") and scene.void is not None and (scene.void == (LABELS == 2)).all()
    labels = labelled_scene(scene, {"cat": 1, "boat": 2}).labels
    assert (labels == np.select([LABELS == 1, LABELS == 4, LABELS == 2], [1, 2, IGNORED], 0)).all()
    if mode != "LA":  # of which what is transparent is no object
        (whole,) = read(masked_images(tmp_path, single=True))
        assert (whole.masks[0] == TRUTH).all()


# ---- the command ----


@pytest.fixture(scope="module")
def neurons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("neurons") / "neurons.safetensors"
    assert inside("effects", "--limit", 16, "--layers", "5", "--top-images", 4, "-o", path).returncode == 0
    return path


def evaluated(neurons: Path, folder: Path, *words: Any) -> tuple[list[dict[str, Any]], str]:
    done = inside("segment_eval", folder, "--text", "pizza", "--bundle", neurons, *words)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()], done.stderr.decode()


def test_the_command_gives_one_miou_for_one_truth(neurons: Path, tmp_path: Path) -> None:
    """The mask has several modes and files; the picture may be rotated by EXIF; void pixels may be present."""
    scene = tmp_path / "scene"
    assert inside("scenes", "--caption", "a pizza", "--seed", 5, "--size", 64, "--out-dir", scene).returncode == 0
    picture = Image.open(next((scene / "images").iterdir())).convert("RGB")
    truth = np.asarray(Image.open(next((scene / "masks").iterdir()))) > 0
    masks = {
        "L.png": Image.fromarray(truth.astype(np.uint8) * 255),
        "LA.png": with_alpha(Image.fromarray(truth.astype(np.uint8) * 255), np.full(truth.shape, 255)),
        "16.png": Image.fromarray((truth * 200).astype(np.uint16)),
        "F.tif": Image.fromarray(truth.astype(np.float32)),
        "sorted.png": palette(np.where(truth, 0, 1), [(255, 255, 255), (0, 0, 0)]),
        "cut.png": with_alpha(picture.point(lambda v: max(v, 1)), truth * 255),
    }
    undo = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90}
    for part in ("images", "masks"):
        (tmp_path / "pairs" / part).mkdir(parents=True)
    for (name, mask), (orientation, turn) in itertools.product(masks.items(), undo.items()):
        kind, ending = name.split(".")
        stored_picture, stored_mask = (image if turn is None else image.transpose(turn) for image in (picture, mask))
        stored_picture.save(tmp_path / "pairs/images" / f"{kind}-{orientation}.png", **exif(orientation))
        stored_mask.save(tmp_path / "pairs/masks" / f"{kind}-{orientation}.{ending}")
    records, said = evaluated(neurons, tmp_path / "pairs")
    figures = {tuple(record[key] for key in ("miou", "accuracy", "map", "object_map")) for record in records}
    assert len(records) == 3 * len(masks) + 1 and len(figures) == 1  # the whole among them
    assert f"{2 * len(masks)} masks are taken for masks of their pictures' stored pixels" in said
    upright, said = evaluated(neurons, tmp_path / "pairs", "--mask-pixels", "upright")
    others = {record["image"] for record in upright[:-1] if record["miou"] != records[-1]["miou"]}
    assert "taken for" not in said and others == {record["image"] for record in upright[:-1] if not record["image"].endswith("1")}


def test_the_command_leaves_void_out_and_says_what_it_cannot_know(neurons: Path, tmp_path: Path) -> None:
    truth = np.zeros((64, 64), np.uint8)
    truth[20:40, 10:50], truth[18:20] = 15, 255
    for part, image in (
        ("images", Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))),
        ("masks", Image.fromarray(truth)),
    ):
        (tmp_path / part).mkdir()
        image.save(tmp_path / part / "a.png")
        image.save(tmp_path / part / "b.png")
    Image.new("L", (64, 64)).save(tmp_path / "masks/b.png")
    (*_, plain), said = evaluated(neurons, tmp_path)
    assert "1 mask has 255 beside other numbers" in said and "1 mask shows no object" in said
    (first, second, void), said = evaluated(neurons, tmp_path, "--ignore", 255)
    assert "255" not in said and void["accuracy"] != plain["accuracy"]
    assert first["share"] == pytest.approx(800 / (64 * 62), rel=1e-5) and second["object_map"] is None
    assert second["miou"] is not None and second["iou_object"] in (0.0, None)
    table = inside("segment_eval", tmp_path, "--text", "pizza", "--bundle", neurons, "-f", "table")
    assert table.returncode == 0 and b"nan" not in table.stdout.lower()
    with pytest.raises(CliptoolsError, match="its mask is of"):
        Image.new("RGB", (64, 64), "red").save(tmp_path / "masks/b.png")
        raise list(masked_images(tmp_path, ignored=(255,)))[1]  # type: ignore[misc]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_a_turned_tiff_is_the_same_by_its_path_and_as_bytes(tmp_path: Path, mode: str) -> None:
    """Pillow maps an uncompressed TIFF with a path into memory, and would use the rotated sides for the stored ones."""
    image = Image.fromarray(LABELS.astype(np.uint8) * 60)
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 256) if mode == "I;16" else image.convert(mode)
    expected = np.asarray(image.convert("RGB")) if mode != "I;16" else np.repeat((LABELS * 60)[..., None], 3, 2)
    for orientation, options in itertools.product(range(1, 9), ({}, {"compression": "tiff_lzw"})):
        path = tmp_path / "a.tif"
        image.save(path, **exif(orientation), **options)
        shown = np.stack([oracle(expected[..., channel], orientation) for channel in range(3)], -1)
        for source in (str(path), io.BytesIO(path.read_bytes())):
            np.testing.assert_allclose(np.asarray(decode(source)).astype(int), shown, atol=1, err_msg=f"{orientation} {options}")
        header_size = header(str(path))
        assert header_size is not None and header_size[:2] == shown.shape[1::-1] and header_size[2] == orientation
