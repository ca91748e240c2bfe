"""Image sources: what is found, in what order and by what name; what decoding does; what is refused and why."""

import bz2
import gzip
import io
import lzma
import os
import struct
import tarfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cliptools.ground.decode import decode, is_picture
from cliptools.ground.errors import CliptoolsError, ImageError, StreamError, UsageError
from cliptools.ground.images import ImageSource, choose, list_digest, open_images
from cliptools.ground.scene_images import SceneSource


def picture(shade: int = 0, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", size, (shade, 255 - shade, 40))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def shade_of(source: ImageSource, index: int) -> int:
    return source.load(index).getpixel((0, 0))[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "photos"
    for shade, name in enumerate(["b.JPG", "a.png", "sub/z.webp", "sub/deeper/c.Jpeg", "sub.gif", ".hidden.png", ".git/x.png"]):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        picture(shade).save(top / name)
    (top / "notes.txt").write_text("no picture")
    (top / "a.masks.png").write_bytes(encoded(picture()))
    return top


def test_folder_is_sorted_recursive_and_leaves_out_what_is_hidden_or_no_picture(folder: Path) -> None:
    source = open_images([str(folder)])
    assert list(source.names) == ["a.png", "b.JPG", "sub.gif", "sub/deeper/c.Jpeg", "sub/z.webp"]
    assert isinstance(source, ImageSource)
    assert [source.load(i).size for i in range(len(source))] == [(8, 6)] * 5


def test_order_does_not_depend_on_the_order_of_creation(tmp_path: Path) -> None:
    for one, names in (("x", ["1.png", "2.png", "d/3.png"]), ("y", ["d/3.png", "2.png", "1.png"])):
        for name in names:
            (tmp_path / one / name).parent.mkdir(parents=True, exist_ok=True)
            picture().save(tmp_path / one / name)
    assert open_images([str(tmp_path / "x")]).names == open_images([str(tmp_path / "y")]).names


def test_linked_folders_are_followed_once_and_loops_end(folder: Path, tmp_path: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "aside").symlink_to(folder / "sub")
    outside = tmp_path / "outside"
    outside.mkdir()
    picture().save(outside / "o.png")
    (outside / "back").symlink_to(folder)
    (folder / "link").symlink_to(outside)
    names = list(open_images([str(folder)]).names)
    assert names == ["a.png", "b.JPG", "link/o.png", "sub.gif", "sub/deeper/c.Jpeg", "sub/z.webp"]


def test_pipes_in_a_folder_are_passed_over_and_dead_links_reported_on_reading(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "dead.png").symlink_to(folder / "nowhere.png")
    source = open_images([str(folder)])
    assert "pipe.png" not in source.names
    with pytest.raises(ImageError, match="no such file"):
        source.load(list(source.names).index("dead.png"))


def test_files_globs_and_braces(folder: Path, tmp_path: Path) -> None:
    assert list(open_images([str(folder / "b.JPG"), str(folder / "a.png")]).names) == ["b.JPG", "a.png"]
    assert list(open_images([str(folder / "sub*" / "*.webp")]).names) == ["z.webp"]
    assert list(open_images([str(folder / "**" / "*.Jpeg")]).names) == ["c.Jpeg"]
    assert list(open_images([str(folder / "{b.JPG,a.png}")]).names) == ["b.JPG", "a.png"]
    assert ".hidden.png" not in open_images([str(folder / "*.png")]).names
    for number in range(8, 11):
        (tmp_path / f"shard-{number:03d}.tar").write_bytes(tar_of({"one.png": encoded(picture(number))}))
    shards = open_images([str(tmp_path / "shard-{008..010}.tar")])
    assert list(shards.names) == ["shard-008.tar/one.png", "shard-009.tar/one.png", "shard-010.tar/one.png"]
    assert [shade_of(shards, i) for i in range(3)] == [8, 9, 10]


def test_a_name_that_looks_like_a_pattern_but_exists_is_taken_as_it_is(tmp_path: Path) -> None:
    picture().save(tmp_path / "[x]{1,2}*.png")
    assert list(open_images([str(tmp_path / "[x]{1,2}*.png")]).names) == ["[x]{1,2}*.png"]


def test_a_folder_called_like_a_picture_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "album.jpg").mkdir()
    picture().save(tmp_path / "album.jpg" / "1.png")
    assert list(open_images([str(tmp_path)]).names) == ["album.jpg/1.png"]
    with pytest.raises(ImageError, match="is a directory"):
        decode(str(tmp_path / "album.jpg"))


def test_names_over_several_bases_are_made_unambiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for one in ("x", "y"):
        Path(one).mkdir()
        picture().save(f"{one}/1.png")
    picture().save("x/2.png")
    assert list(open_images(["x", "y"]).names) == ["x/1.png", "x/2.png", "y/1.png"]
    assert list(open_images(["x/2.png", "y"]).names) == ["2.png", "1.png"]
    assert list(open_images(["y", "y/1.png"]).names) == ["y/1.png", "y/1.png#2"]


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    for raw in (b"\xff.png", b"new\nline.png", "café.png".encode()):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + raw)).write_bytes(encoded(picture()))
    source = open_images([str(tmp_path)])
    assert sorted(source.names) == ["\\xff.png", "café.png", "new\\nline.png"]
    "".join(source.names).encode("utf-8")
    assert all(source.load(i).size == (8, 6) for i in range(3))


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_tar_plain_or_compressed_as_file_and_on_stdin(tmp_path: Path, pack) -> None:
    members = {
        "./0.png": encoded(picture(10)),
        "0.txt": b"caption",
        "0.masks.png": encoded(picture()),
        "b/1.jpg": encoded(picture(20)),
    }
    data = pack(tar_of(members))
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    for paths, stdin, names in (
        ([str(path)], None, ["s.tar/0.png", "s.tar/b/1.jpg"]),
        (["-"], io.BytesIO(data), ["0.png", "b/1.jpg"]),
    ):
        source = open_images(paths, stdin)
        assert list(source.names) == names
        assert [shade_of(source, i) for i in (0, 1, 0, 1)] == [10, 20, 10, 20]


def test_several_archives_and_a_folder_read_from_threads_at_once(tmp_path: Path) -> None:
    for number in range(3):
        pack = (bytes, gzip.compress, lzma.compress)[number]
        data = tar_of({f"{i}.png": encoded(picture(60 * number + i)) for i in range(20)})
        (tmp_path / f"{number}.tar").write_bytes(pack(data))
    source = open_images([str(tmp_path / "{0..2}.tar")])
    with ThreadPoolExecutor(8) as pool:
        shades = list(pool.map(lambda i: shade_of(source, i), list(range(60)) * 5))
    assert shades == [60 * number + i for number in range(3) for i in range(20)] * 5


def test_a_pipe_named_as_a_file_is_read_as_a_tar(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(tar_of({"1.png": encoded(picture(7))})))
    writer.start()
    source = open_images([str(pipe)])
    writer.join()
    assert (shade_of(source, 0), shade_of(source, 0)) == (7, 7)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty input"),
        (b"no tar at all, but longer than a header" * 40, "not a tar archive"),
        (tar_of({"1.png": bytes(5000)})[:3000], "truncated|unexpected end"),
        (gzip.compress(tar_of({"1.png": os.urandom(5000)}))[:3000], "damaged compressed"),
        (tar_of({"1.png": encoded(picture())})[:1024] + b"x" * 1024, "no member's header"),
    ],
)
def test_damaged_archives_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        open_images(["-"], io.BytesIO(data))
    if data:
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(StreamError, match=message):
            open_images([str(tmp_path / "x.tar")])


def test_a_tar_without_an_end_is_read_and_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    source = open_images(["-"], io.BytesIO(tar_of({"1.png": encoded(picture())})[:1024]))
    assert len(source) == 1
    assert "no end mark" in capsys.readouterr().err


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(CliptoolsError, match=r"no images in .*: looked for names ending in \.jpg"):
        open_images([str(tmp_path)])
    with pytest.raises(CliptoolsError, match="no images in -"):
        open_images(["-"], io.BytesIO(tar_of({"1.txt": b"text"})))
    (tmp_path / "1.tar").write_bytes(tar_of({"1.png": encoded(picture())}))
    with pytest.raises(CliptoolsError, match=r"archives .* must be named"):
        open_images([str(tmp_path)])
    with pytest.raises(CliptoolsError, match="nowhere: no such file or folder"):
        open_images([str(tmp_path / "nowhere")])
    with pytest.raises(CliptoolsError, match=r"s-2\.tar: no such file"):
        open_images([str(tmp_path / "s-{2..3}.tar")])
    with pytest.raises(UsageError):
        open_images([])
    with pytest.raises(UsageError, match="once"):
        open_images(["-", "-"], io.BytesIO(b""))


def test_a_terminal_is_no_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    with pytest.raises(UsageError, match="standard input"):
        open_images(["-"])


def grey16(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)))


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
    """A PNG that announces a size and holds hardly any data."""
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


def test_a_file_that_vanishes(folder: Path) -> None:
    source = open_images([str(folder)])
    (folder / "a.png").unlink()
    with pytest.raises(ImageError, match="no such file"):
        source.load(0)
    (folder / "a.tar").write_bytes(tar_of({"1.png": encoded(picture())}))
    shard = open_images([str(folder / "a.tar")])
    (folder / "a.tar").unlink()
    with pytest.raises(ImageError, match="no such file"):
        shard.load(0)


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
    assert not any(map(is_picture, ("a.txt", ".a.png", "x/.b.jpg", "k.masks.png", "K.MASKS.PNG", "png", "a.eps")))


def test_digest_counts_names_not_order() -> None:
    assert list_digest(["a", "b"]) == list_digest(["b", "a"]) != list_digest(["ab"])


def test_choose_limits_or_samples() -> None:
    source = SceneSource(50, 1)
    assert choose(source, None, None, 0) == list(range(50))
    assert choose(source, 7, None, 0) == list(range(7))
    assert choose(source, 99, None, 0) == choose(source, None, 99, 0) == list(range(50))
    drawn = choose(source, None, 9, 3)
    assert drawn == sorted(set(drawn)) and len(drawn) == 9
    assert drawn == choose(source, None, 9, 3) != choose(source, None, 9, 4)
    assert max(drawn) > 9  # over the whole list
    for limit, sample in ((3, 3), (0, None), (None, 0)):
        with pytest.raises(UsageError):
            choose(source, limit, sample, 0)


def test_scenes_are_a_source_of_images() -> None:
    short, long = SceneSource(3, 7), SceneSource(5, 7)
    assert isinstance(short, ImageSource)
    assert list(long.names)[:3] == list(short.names) == ["scene-000000", "scene-000001", "scene-000002"]
    for i in range(3):
        assert short.load(i).tobytes() == long.load(i).tobytes()
        assert short.load(i).size == (64, 64)
        assert len(short.drawn(i)) == len(short.scene(i).sprites)
    assert SceneSource(1, 8).load(0).tobytes() != short.load(0).tobytes()
