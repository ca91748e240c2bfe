"""Image sources: files, their order and their names, and errors with their reasons."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.images import encoded, picture

from cliptools.emoji.render import SceneSource
from cliptools.errors import CliptoolsError, ImageError, StreamError, UsageError
from cliptools.images.decode import decode
from cliptools.images.listing import _braces
from cliptools.images.loader import ImageSource, choose, list_digest, open_images


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
    assert list(_braces("{8..10}")) == ["8", "9", "10"] and list(_braces("{08..10}")) == ["08", "09", "10"]
    assert list(_braces("{2..0}-{a,b}")) == ["2-a", "2-b", "1-a", "1-b", "0-a", "0-b"] and list(_braces("{x}")) == ["{x}"]
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
    Path("x/y").mkdir()
    picture().save("x/y/1.png")
    assert list(open_images(["x/y", "y", "./x/1.png"]).names) == ["x/y/1.png", "y/1.png", "x/1.png"]


@pytest.mark.parametrize(
    "again", ["x", "x/", "./x", "../{here}/x", "{whole}/x", "link", "x/1.png", "link/1.png", "x/*.png", "x/sub"]
)
def test_an_image_that_two_paths_name_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], again: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x/sub").mkdir(parents=True)
    for name in ("x/1.png", "x/sub/2.png"):
        picture().save(name)
    Path("link").symlink_to("x")
    again = again.format(here=tmp_path.name, whole=tmp_path)
    for paths in (["x", again], ["x", again, again]):
        assert list(open_images(paths).names) == ["1.png", "sub/2.png"]
    assert "named twice and read once" in capsys.readouterr().err


def test_an_archive_that_is_named_twice_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    members = tar_of({"0.png": encoded(picture(10))})
    for name, pack in (("a.tar", bytes), ("b.tar.gz", gzip.compress)):
        Path(name).write_bytes(pack(members))
        Path(f"link-{name}").symlink_to(name)
        assert list(open_images([name, f"./{name}", f"link-{name}"]).names) == [f"{name}/0.png"]
    assert "2 images are named twice and read once: a.tar/0.png" in capsys.readouterr().err
    assert list(open_images(["a.tar", "b.tar.gz"]).names) == ["a.tar/0.png", "b.tar.gz/0.png"]


def test_a_link_to_a_file_is_an_image_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    picture().save("x/1.png")
    Path("x/2.png").symlink_to("1.png")
    assert list(open_images(["x"]).names) == list(open_images(["x/1.png", "x/2.png"]).names) == ["1.png", "2.png"]


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
        (b"no tar at all, but longer than a header" * 40, "text; expected a tar archive"),
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
        assert len(short.names_in(i)) == len(short.scene(i).sprites)
    assert SceneSource(1, 8).load(0).tobytes() != short.load(0).tobytes()


def test_a_range_without_end_stops_at_the_first_name_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CliptoolsError, match=r"s-0\.tar: no such file"):
        open_images([str(tmp_path / "s-{0..99999999999}.tar")])
