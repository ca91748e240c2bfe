"""Pictures as people have them, and pictures that are damaged, enormous, elsewhere or gone."""

import contextlib
import io
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.damage import valid_pictures
from helpers.forked import Nursery
from helpers.pictures_made import bombs, encoded
from PIL import Image

from cliptools.errors import CliptoolsError, ImageError
from cliptools.images.decode import decode
from cliptools.io.bundle import Bundle, read_bundle
from cliptools.models.load import load_model
from cliptools.streaming.measure import measure
from cliptools.streaming.summary import Settings
from cliptools.unit_effects.select import factored_effect

Often = Callable[[int, int], int]
EFFECTS = ("effects", "--layers", "6", "--top-images", 100)
ORIENTATION = 0x0112
UNDONE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip
"""What turns an upright picture into one that the tag of this number turns back."""
NAMES = (
    b"with a space.png", b"new\nline.png", b"quote's \"two\".png", "émoji 🐈‍⬛.png".encode(), b"\xff\xfe no text.png", b"-o.png",
    b"--output=x.png", b"$(touch gone).png", b"`touch gone`;touch gone.png", b"\x1b[31mred\x07.png", b"%s {0} [bold].png",
    "\u202egnp.exe.png".encode(), b"l" * 251 + b".png", b"*.png", b"[a].png",
)  # fmt: skip


def blocks() -> Image.Image:
    """Eight colours, so that palettes hold it exactly, and no symmetry, so that turning it shows."""
    colours = np.array([[c >> 2 & 1, c >> 1 & 1, c & 1] for c in (0, 7, 4, 2, 1, 3, 5, 6, 4, 0, 2, 2)], np.uint8) * 255
    return Image.fromarray(colours.reshape(3, 4, 3)).resize((64, 48), Image.Resampling.NEAREST)


def same_pictures() -> dict[str, dict[str, bytes]]:
    """One picture as many files, by what it shows."""
    colour = blocks()
    white = colour.convert("L").point(lambda v: 255 * (v > 100))
    grey = colour.convert("L")
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    frames = {"save_all": True, "append_images": [Image.new("RGB", colour.size, "red")]}
    hidden = colour.convert("P")
    turned = {}
    for tag, transpose in UNDONE.items():
        exif = Image.Exif()
        exif[ORIENTATION] = tag
        turned[f"exif {tag}.png"] = encoded(colour.transpose(transpose), exif=exif)
    return {
        "colour": turned | {
            "upright.png": encoded(colour), "palette.png": encoded(hidden), "clear.png": encoded(hidden, transparency=255),
            "opaque.png": encoded(colour.convert("RGBA")), "a.bmp": encoded(colour, "BMP"), "a.tif": encoded(colour, "TIFF"),
            "planes.tiff": encoded(colour, "TIFF", compression="tiff_lzw"), "first.gif": encoded(colour, "GIF", **frames),
            "first.webp": encoded(colour, "WEBP", lossless=True, **frames), "first.apng": encoded(colour, "PNG", **frames),
            "a.ppm": encoded(colour, "PPM"), "a.tga": encoded(colour, "TGA"),
        },
        "grey": {
            "grey.png": encoded(grey), "grey rgb.png": encoded(grey.convert("RGB")), "sixteen.png": encoded(sixteen),
            "sixteen.tif": encoded(sixteen, "TIFF"), "clear.png": encoded(grey.convert("LA")),
        },
        "white": {
            "one bit.png": encoded(white.convert("1")), "one bit.tif": encoded(white.convert("1"), "TIFF", compression="group4"),
            "eight bits.png": encoded(white),
        },
    }  # fmt: skip


def measured(nursery: Nursery, folder: Path, *options: Any) -> tuple[Bundle, list[str]]:
    """The effects on a folder's pictures, and what was said."""
    ended = nursery.run(*EFFECTS, folder, *options, "-o", folder.parent / "effects.safetensors")
    assert ended.status == 0, ended.stderr.decode()
    with (folder.parent / "effects.safetensors").open("rb") as stream:
        return read_bundle(stream, "it"), ended.lines


def norms_by_name(bundle: Bundle) -> dict[str, np.ndarray]:
    """Each image's norm for every unit."""
    names = bundle.text_list("images")
    place = np.argsort(bundle["top_image"], axis=1)
    assert all((np.sort(row) == np.arange(len(names))).all() for row in bundle["top_image"])
    norms = np.take_along_axis(bundle["top_norm"], place, 1)  # [unit, image]
    return {name: norms[:, i] for i, name in enumerate(names)}


def warnings_of(lines: list[str]) -> dict[str, str]:
    """Reasons of pictures that were skipped, by name."""
    said = [line.removeprefix("warning: ").split(": skipped, ") for line in lines if line.startswith("warning: ")]
    said = [each for each in said if not each[0].startswith("--top-images ")]  # all images are top images here
    assert all(len(each) == 2 for each in said), lines
    return dict(said)


def test_a_picture_counts_the_same_in_whatever_file(nursery: Nursery, tmp_path: Path) -> None:
    kinds = same_pictures()
    photos = tmp_path / "photos"
    photos.mkdir()
    for kind, files in kinds.items():
        for name, data in files.items():
            (photos / f"{kind} {name}").write_bytes(data)
    others = {
        "cmyk.jpg": ("CMYK", "JPEG"),
        "ycc.tif": ("YCbCr", "TIFF"),
        "fine.jp2": ("RGB", "JPEG2000"),
        "a.avif": ("RGB", "AVIF"),
    }
    for name, (mode, kind) in others.items():
        (photos / name).write_bytes(encoded(blocks().convert(mode), kind))
    Image.new("RGB", (1, 1), "red").save(photos / "dot.png")
    Image.new("RGB", (1, 5000), "red").save(photos / "long.png")
    bundle, said = measured(nursery, photos, "--limit", 99)
    norms = norms_by_name(bundle)
    assert warnings_of(said) == {"long.png": "1 × 5000 pixels is too elongated to resize (at most 200:1)"}
    assert norms.keys() == {one.name for one in photos.iterdir()} - {"long.png"}
    for kind, files in kinds.items():
        first, *rest = (norms[f"{kind} {name}"] for name in files)
        scale = first.max()
        for name, values in zip(list(files)[1:], rest, strict=True):
            assert np.abs(values - first).max() < 1e-4 * scale, f"{kind} {name}"
    apart = [norms[name] for name in ("colour upright.png", "grey grey.png", "white eight bits.png", "dot.png")]
    assert all(np.abs(one - other).max() > 0.005 for i, one in enumerate(apart) for other in apart[:i])


def test_names_of_every_kind(nursery: Nursery, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, name in enumerate(NAMES):
        data = encoded(Image.effect_noise((32, 32), 20 + 9 * number))
        Path(os.fsdecode(os.fsencode(photos) + b"/" + name)).write_bytes(data)
    Path(os.fsdecode(os.fsencode(photos) + b"/broken \x1b[31m\n\xff.png")).write_bytes(b"none")
    bundle, said = measured(nursery, photos, "--thumbnails", 32)
    listed = bundle.text_list("images")
    assert len(listed) == len(set(listed)) == len(NAMES) and all(name.isprintable() for name in listed)
    assert list(warnings_of(said)) == ["broken \\x1b[31m\\n\\xff.png"]
    effects = tmp_path / "effects.safetensors"
    written = [
        ("gallery", "--head", 3, effects, "-o", tmp_path / "g.html"),
        ("sheet", "--head", 2, effects, "-o", tmp_path / "s.png"),
    ]
    written += [("view", "-f", "jsonl", effects)]
    for words in written:
        ended = nursery.run(*words)
        assert ended.status == 0, ended.stderr.decode()
        assert all(line.isprintable() for line in ended.lines)
        assert all(line.isprintable() for line in ended.stdout.decode().splitlines())
    assert not (ROOT / "gone").exists() and not (tmp_path / "gone").exists() and sorted(p.name for p in tmp_path.iterdir()) == [
        "effects.safetensors", "g.html", "photos", "s.png"]  # fmt: skip


def test_damage_is_refused_in_a_line_and_nothing_else_is_said(often: Often) -> None:
    words = [sys.executable, str(ROOT / "tests" / "helpers" / "damage.py"), str(often(300, 10_000)), "1"]
    ended = subprocess.run(words, capture_output=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    assert ended.returncode == 0 and not ended.stderr, ended.stderr.decode()
    said = json.loads(ended.stdout)
    assert said["tried"] // 20 < said["read"] < said["tried"]
    assert said["slowest"] < 5 and said["grown"] < 1.5e9


def test_cut_at_many_places(often: Often) -> None:
    """Truncated pictures are refused, or, where only what follows the pixels is missing, read as the whole is."""
    for name, data in valid_pictures():
        whole = decode(io.BytesIO(data)).tobytes()
        places = {0, 1, len(data) - 1, *random.Random(name).sample(range(len(data)), min(len(data), often(5, 300)))}
        for place in places:
            try:
                read = decode(io.BytesIO(data[:place])).tobytes()
            except ImageError as error:
                assert str(error).isprintable()
            else:
                assert read == whole or name.startswith(("gif", "webp", "ico", "tga", "jpeg 2000", "avif")), (name, place)


def test_bombs_are_refused_in_little_memory(nursery: Nursery, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    blocks().save(photos / "good.png")
    Image.effect_noise((64, 64), 90).save(photos / "other.png")
    _, begin = measured(nursery, photos, "--log-json")
    for name, data in bombs().items():
        (photos / name).write_bytes(data)
    assert sum(one.stat().st_size for one in photos.iterdir()) < 8e6
    _, lines = measured(nursery, photos, "--log-json")
    before, after = (json.loads(said[-1]) for said in (begin, lines))
    assert after["peak_bytes"] - before["peak_bytes"] < 3e8 and after["seconds"] - before["seconds"] < 20
    warned = {each["message"].split(":")[0] for each in map(json.loads, lines) if each["event"] == "warning"}
    assert warned - {"--top-images 100"} == bombs().keys()
    assert any("tile.tif: skipped, a tile of 20000 × 20000 pixels" in line for line in lines)


def test_what_is_no_file_and_what_leads_nowhere(nursery: Nursery, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "folder.jpg").mkdir(parents=True)
    blocks().save(photos / "good.png")
    Image.effect_noise((64, 64), 90).save(photos / "folder.jpg" / "inside.png")
    (photos / "text.jpg").write_text("no picture\n")
    (photos / "empty.jpg").touch()
    (photos / "itself.jpg").symlink_to("itself.jpg")
    (photos / "one.jpg").symlink_to("other.jpg")
    (photos / "other.jpg").symlink_to("one.jpg")
    (photos / "loop").symlink_to(".")
    (photos / "nowhere.png").symlink_to("gone.png")
    os.mkfifo(photos / "pipe.png")
    bundle, said = measured(nursery, photos)
    assert bundle.text_list("images") == ["folder.jpg/inside.png", "good.png"]
    looped = "too many levels of symbolic links"
    assert warnings_of(said) == {
        "empty.jpg": "empty", "itself.jpg": looped, "nowhere.png": "no such file or directory", "one.jpg": looped,
        "other.jpg": looped, "text.jpg": "text, not an image",
    }  # fmt: skip
    strict = nursery.run(*EFFECTS, photos, "--strict", "-o", tmp_path / "strict.safetensors")
    assert strict.status == 1 and len(strict.lines) == 1 and not (tmp_path / "strict.safetensors").exists()
    alone = nursery.run(*EFFECTS, photos / "itself.jpg")
    assert alone.status == 1 and alone.lines[-1].startswith("clip-effects: ") and not alone.stdout


@pytest.mark.parametrize("archive", [False, True])
def test_files_that_vanish_and_change_while_they_are_read(nursery: Nursery, tmp_path: Path, often: Often, archive: bool) -> None:
    """Three passes over pictures that somebody removes, empties, replaces by folders, links and others meanwhile."""
    for attempt in range(often(1, 10)):
        rng = random.Random(attempt)
        photos = tmp_path / f"{attempt}"
        photos.mkdir()
        for number in range(200):
            Image.effect_noise((64, 64), 10 + number % 90).save(photos / f"{number:03d}.png")
        if archive:
            subprocess.run(["tar", "-C", photos, "-cf", photos / "all.tar", *(f"{n:03d}.png" for n in range(200))], check=True)
        out = tmp_path / f"{attempt}.safetensors"
        words = ("--layers", "4-6", "--top-images", 20, "--memory", 0.03, "--batch-size", 8)
        started = nursery.start("effects", photos / "all.tar" if archive else photos, *words, "-o", out)
        done = threading.Event()
        upset = threading.Thread(target=_upset, args=(photos / "all.tar" if archive else photos, rng, done))
        upset.start()
        ended = started.wait()
        done.set()
        upset.join()
        if ended.status == 0:
            with out.open("rb") as stream:
                bundle = read_bundle(stream, "it")
            assert bundle.header.images["count"] <= 200 and np.isfinite(bundle["top_norm"]).all()
        else:
            assert ended.status == 1 and ended.lines[-1].startswith("clip-effects: ") and not out.exists()
        assert b"Traceback" not in ended.stderr


def test_passes_that_see_other_images_are_an_error(tiny_clip_dir: Path) -> None:
    """Of two passes over three pictures, the second finds two."""
    model = load_model(f"local-dir:{tiny_clip_dir}", device="cpu")
    paths, looks = factored_effect(model.clip, "second", "neurons"), []

    def batches(only: Collection[int] | None) -> Iterator[tuple[list[int], torch.Tensor]]:
        looks.append(only)
        numbers = list(range(3 if len(looks) == 1 else 2))
        yield numbers, torch.randn(len(numbers), 3, 24, 24, generator=torch.Generator().manual_seed(1))

    with pytest.raises(CliptoolsError, match="images changed while they were read: first 3 could be read, then 2; run again"):
        measure(paths, batches, [0, 1, 2], 3, Settings(top=2, memory=1e4))
    assert len(looks) == 2


def _upset(place: Path, rng: random.Random, done: threading.Event) -> None:
    """Do harm to a folder's pictures, or to an archive, until told to stop."""
    while not done.wait(0.002):
        if place.is_dir():
            with contextlib.suppress(OSError):
                _harm(place / f"{rng.randrange(200):03d}.png", rng)
        elif rng.random() < 0.02:
            with place.open("r+b") as file:
                file.truncate(rng.randrange(1, place.stat().st_size + 1))
        else:
            with place.open("r+b") as file:
                file.seek(rng.randrange(200_000))
                file.write(rng.randbytes(400))
        time.sleep(0)


def _harm(path: Path, rng: random.Random) -> None:
    """What was there may be a folder by now, or a link to one."""
    if path.is_symlink() or path.is_file():
        kind = rng.randrange(5)
        if kind == 0:
            path.write_bytes(path.read_bytes()[:99] if path.is_file() else b"")
            return
        path.unlink()
        if kind == 1:
            path.mkdir()
        elif kind == 2:
            path.symlink_to("000.png")
        elif kind == 3:
            Image.new("RGB", (9, 9), "red").save(path)
