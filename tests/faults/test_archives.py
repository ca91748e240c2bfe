"""Archives whose members lie about themselves: nothing is written, nothing outside is read, memory and time stay small."""

import gzip
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.forked import Nursery, Study
from helpers.pictures_made import encoded, gzip_of_zeros, member, tar
from PIL import Image

Often = Callable[[int, int], int]
EFFECTS = ("effects", "--layers", "6", "--top-images", 100)
GOOD = encoded(Image.effect_noise((40, 40), 80))
HIDDEN = ("../../outside.png", "a/../../../b.png", "./..//c.png", "/../d.png", "..\\e.png")
"""Names that climb are hidden ones: their parts begin with a dot."""
ABSOLUTE = ("/tmp/absolute.png", "//tmp/slashes.png", "///tmp//more.png", "C:\\drive.png")


def linked(kind: bytes, to: str) -> Callable[[tarfile.TarInfo], None]:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, to

    return change


def listed(nursery: Nursery, data: bytes | Path) -> list[str]:
    """Names of an archive's pictures that are read."""
    words = ("-f", "jsonl", data) if isinstance(data, Path) else ("-f", "jsonl", "-")
    ended = nursery.run(*EFFECTS, *words, stdin=b"" if isinstance(data, Path) else data)
    assert ended.status == 0, ended.stderr.decode()
    return sorted(top["image"] for top in json.loads(ended.stdout.splitlines()[0])["top_images"])


def contents(folder: Path) -> set[str]:
    return {str(each.relative_to(folder)) for each in folder.rglob("*")}


def test_members_lead_nowhere(nursery: Nursery, study: Study, tmp_path: Path) -> None:
    """Names that are absolute or climb are names, to clip-segment --out-dir as well, which calls folders by them."""
    outside = tmp_path / "secret.png"
    outside.write_bytes(GOOD)
    links = [member(f"{kind!r}.png", linked(kind, str(outside))) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE)]
    devices = [member(f"{kind!r}device.png", linked(kind, "")) for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)]
    others = (*links, *devices, member("folder.png", linked(tarfile.DIRTYPE, "")))
    data = tar([*((name, GOOD) for name in (*ABSOLUTE, *HIDDEN)), *((each, b"") for each in others)])
    archive = tmp_path / "deep" / "deeper" / "a.tar"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(data)
    assert listed(nursery, archive) == sorted(f"a.tar/{name}" for name in ABSOLUTE)
    assert listed(nursery, data) == sorted(ABSOLUTE)
    before = contents(tmp_path)
    for number, (where, stdin) in enumerate(((archive, b""), ("-", data))):
        out = archive.parent / f"out{number}"
        words = ("segment", where, "--text", "cat", "--out-dir", out, "-f", "jsonl", "--bundle", study.neurons)
        ended = nursery.run(*words, stdin=stdin)
        assert ended.status == 0, ended.stderr.decode()
        assert sum(name.endswith("mask.png") for name in contents(out)) == len(ABSOLUTE)
    assert all(name.startswith("deep/deeper/out") for name in contents(tmp_path) - before)
    assert not any(Path("/tmp", name).exists() for name in ("absolute.png", "slashes.png", "more.png"))


def test_names_that_stand_there_twice(nursery: Nursery) -> None:
    other = encoded(Image.effect_noise((40, 40), 30))
    assert listed(nursery, tar([("a.png", GOOD), ("a.png", other), ("./a.png", GOOD)])) == ["-/a.png", "-/a.png#2", "-/a.png#3"]


def test_headers_that_lie(nursery: Nursery, tmp_path: Path) -> None:
    """Sizes in pax headers that are wrong, huge or no numbers, sparse members, octal that is none: one line, or passed over."""

    def pax(name: str, **said: str) -> tarfile.TarInfo:
        return member(name, lambda info: setattr(info, "pax_headers", said))

    lies = {
        "size": pax("a.png", size="99999999999"), "negative": pax("a.png", size="-5"), "letters": pax("a.png", size="many"),
        "sparse": pax("a.png", **{"GNU.sparse.size": "1099511627776", "GNU.sparse.map": "0,1099511627776"}),
        "sparse letters": pax("a.png", **{"GNU.sparse.map": "x,y", "GNU.sparse.size": "9"}),
        "major": pax("a.png", **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"}),
        "name": pax("a.png", path="../" * 50 + "etc/x.png"), "mtime": pax("a.png", mtime="9e999"),
        "link": pax("a.png", linkpath="/etc/passwd"), "long": pax("a.png", comment="x" * 3_000_000),
    }  # fmt: skip
    for name, lie in lies.items():
        ended = nursery.run(
            *EFFECTS, "-", "-o", tmp_path / "out", stdin=tar([("first.png", GOOD), (lie, GOOD), ("last.png", GOOD)])
        )
        assert ended.status in (0, 1) and b"Traceback" not in ended.stderr, name
        assert ended.status == 0 or len(ended.lines) == 1, (name, ended.lines)


def test_archives_cut_and_changed_anywhere(nursery: Nursery, often: Often) -> None:
    """Bytes cut off, bits flipped: one line and exit 1, or the pictures that are there."""
    whole = tar([(f"{number}.png", GOOD) for number in range(4)])
    packed = gzip.compress(whole)
    for number in range(often(8, 300)):
        rng = random.Random(number)
        data = bytearray(rng.choice((whole, packed)))
        if rng.random() < 0.5:
            del data[rng.randrange(len(data)) :]
        else:
            at = rng.choice((rng.randrange(512), 512 + len(GOOD) // 512 * 512 + rng.randrange(1024), rng.randrange(len(data))))
            data[at % len(data)] ^= 1 << rng.randrange(8)
        ended = nursery.run(*EFFECTS, "-", "-f", "jsonl", stdin=bytes(data))
        assert ended.status in (0, 1) and b"Traceback" not in ended.stderr, (number, ended.stderr.decode())
        assert ended.status == 0 or (ended.lines[-1].startswith("clip-effects: ") and not ended.stdout), (number, ended.lines)


@pytest.mark.parametrize("kind", ["zeros", "picture", "header", "end"])
def test_archives_that_grow(nursery: Nursery, tmp_path: Path, often: Often, kind: str) -> None:
    """Megabytes that unpack to gigabytes, as a member, a picture, a header or an end without end, take no memory."""
    size = often(600 if kind == "picture" else 200, 3_000) << 20  # a picture of more than is read of one
    good = tar([("a.png", GOOD), ("b.png", GOOD)])[: 2 * (512 + -(-len(GOOD) // 512) * 512)]
    grown = member("zeros.png" if kind == "picture" else "zeros", lambda info: setattr(info, "size", size))
    grown.type = tarfile.XHDTYPE if kind == "header" else tarfile.REGTYPE
    path = tmp_path / "bomb.tar.gz"
    gzip_of_zeros(path, size + (1 << 20), good + (b"" if kind == "end" else grown.tobuf(tarfile.GNU_FORMAT)))
    assert path.stat().st_size < size / 200
    ended = nursery.run(*EFFECTS, path, "--log-json", "-o", tmp_path / "out")
    said = [json.loads(line) for line in ended.lines]
    if kind == "header":
        assert ended.status == 1 and len(said) == 1 and f"a header of {size} bytes" in said[0]["message"]
        return
    assert ended.status == 0 and said[-1]["count"] == 2 and said[-1]["peak_bytes"] < 8e8, said
    assert kind != "picture" or "bytes in an archive" in said[0]["message"]
