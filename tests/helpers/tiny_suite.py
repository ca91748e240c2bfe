"""Every command of the suite on tiny models and a few scenes, each in a tenth of a second, for tests of common behaviour."""

import json
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

from helpers.advgen_input import inside

SCENES = 6
TEXTS = ("cat", "dog", "panda", "a red car", "boat", "pizza", "rocket", "crown", "key", "green field", "lemon", "two birds")
TOP = ("--top-images", 3, "--quantile", 0.5, "--batch-size", 4, "--workers", 0)
READ = ("--batch-size", 4, "--workers", 0)


class Case(NamedTuple):
    """A command line, and the file of its standard input."""

    command: str
    words: tuple[Any, ...]
    stdin: Path | None = None


class Suite:
    """Scenes, tiny models, bundles of each kind, and the command lines that use them."""

    def __init__(self, folder: Path, vit: Path, resnet: Path, ready: bool = False) -> None:
        """
        Args:
            ready: The folder holds all of it already.
        """
        self.folder, self.vit, self.resnet = folder, f"local-dir:{vit}", f"local-dir:{resnet}"
        self.scenes, self.pool, self.classes = folder / "scenes", folder / "pool.txt", folder / "classes.txt"
        self.images = self.scenes / "images"
        if not ready:
            self._make()

    def _make(self) -> None:
        folder = self.folder
        self.pool.write_text("\n".join(TEXTS) + "\n")
        self.classes.write_text("cat\ndog, puppy\npizza\nsky\n")
        done("scenes", "--count", SCENES, "--size", 64, "--out-dir", self.scenes)
        (folder / "photos").mkdir()
        for number, path in enumerate(sorted(self.images.iterdir())):
            group = folder / "photos" / ("cat", "pizza")[number % 2]
            group.mkdir(exist_ok=True)
            (group / path.name).write_bytes(path.read_bytes())
        for name, words in self.measured.items():
            done("effects", *words, "-o", self.bundle(name))
        for number in (1, 2):
            done("effects", *self.measured["second"], "--shard", f"{number}/2", "-o", folder / f"{number}.partial")
        for name in ("second", "pooled"):
            words = ("--pool", self.pool, "--m", 3, self.bundle(name), "-o", self.bundle(f"{name}-words"))
            done("decompose", *words)
        words = ("--depict", "cat", "--predict", "dog", "--words", 3, "--neurons", 20, "--by", "random", "--near", 1.1)
        (folder / "words.jsonl").write_bytes(done("spurious", *words[:-2], self.bundle("second-words")))
        lines = (folder / "words.jsonl").read_bytes()
        (folder / "pictures.jsonl").write_text(self._pictures(lines))

    def bundle(self, name: str) -> Path:
        """Return the file of a bundle."""
        return self.folder / f"{name}.safetensors"

    @property
    def measured(self) -> dict[str, tuple[Any, ...]]:
        """Return command lines of clip-effects by the names of their bundles."""
        vit = ("--model", self.vit, "--layers", "1,2", *TOP)
        resnet = ("--model", self.resnet, *TOP)
        return {
            "second": (self.images, *vit),
            "first": (self.images, *vit, "--effect", "first"),
            "indirect": (self.images, *vit, "--effect", "indirect", "--sample-neurons", 4),
            "heads": (self.images, *vit, "--units", "heads"),
            "components": (self.images, *vit, "--components", 2, "--keep", "50%", "--thumbnails", 16),
            "passes": (self.images, *vit, "--memory", 0.01),
            "pooled": (self.images, *resnet, "--keep", "50%"),
            "raw": (self.images, *resnet, "--units", "neurons", "--scale", "raw"),
        }

    def cases(self) -> dict[str, Case]:
        """Return a command line of every command, and of each of its ways to compute."""
        words, pairs, second = self.bundle("second-words"), self.bundle("pooled-words"), self.bundle("second")
        heads, short = self.bundle("heads"), ("--template", "{}")
        made = {f"effects {name}": Case("effects", words) for name, words in self.measured.items()}
        made |= {
            "effects shard": Case("effects", (*self.measured["second"], "--shard", "1/2")),
            "merge": Case("merge", (self.folder / "1.partial", self.folder / "2.partial", "--images", self.images, *READ)),
            "decompose": Case("decompose", ("--pool", self.pool, "--m", 3, "--no-cache"), second),
            "decompose textspan": Case("decompose", ("--pool", self.pool, "--method", "textspan", "--m", 2, "--no-cache"), heads),
            "decompose pairs": Case("decompose", ("--pool", self.pool, "--m", 3, "--prefix", "1,2"), self.bundle("pooled")),
            "judge": Case("judge", (self.images, "--same-names", *READ, "--bundle", words, "-f", "jsonl", "--no-cache")),
            "judge truth": Case("judge", (self.images, "--same-names", *self._labels, "--bundle", words, "-f", "jsonl")),
            "judge model": Case("judge", (self.images, "--same-names", *self._other, "--bundle", words, "-f", "jsonl")),
            "judge pairs": Case("judge", (self.images, "--same-names", *READ, "--bundle", pairs, "-f", "jsonl")),
            "spurious": Case("spurious", ("--depict", "cat", "--predict", "dog", "--words", 3), words),
            "spurious classes": Case("spurious", ("--classes", self.classes, "--words", 3, "--head", 2, "--no-cache"), words),
            "spurious overlap": Case("spurious", ("--depict", "cat", "--predict", "dog", "--by", "overlap"), words),
            "spurious similar": Case("spurious", ("--depict", "cat", "--predict", "dog", "--by", "similar"), words),
            "spurious pairs": Case("spurious", ("--depict", "cat", "--predict", "dog", "--words", 3), pairs),
            "explain": Case("explain", (self.images, "--text", "cat", "--text", "dog", *short, *READ, "-f", "jsonl"), words),
            "explain classes": Case("explain", (self.images, "--classes", self.classes, *short, *READ, "-f", "jsonl"), words),
            "explain pairs": Case("explain", (self.images, "--text", "cat", *READ, "-f", "jsonl"), pairs),
            "explain words": Case("explain", (self.images, "--text", "cat", "--pool", self.pool, *READ, "-f", "jsonl"), second),
            "edit": Case("edit", (*self._cue, "-o", self.folder / "edited.safetensors"), words),
            "edit pairs": Case("edit", (*self._cue, "-o", self.folder / "edited-pairs.safetensors"), pairs),
            "advgen": Case("advgen", (*self._painting, "--judge", self.vit, "--judge-classes", self.classes)),
            "advgen images": Case("advgen", ("--images-only", "-f", "jsonl", self.folder / "pictures.jsonl")),
            "texts": Case("texts", ("--help",)),
            "scenes": Case("scenes", ("--count", 2)),
            "view": Case("view", ("-f", "jsonl"), words),
            "view pairs": Case("view", ("-f", "jsonl"), pairs),
            "sheet": Case("sheet", ("--head", 2, "--images-from", self.images), words),
            "gallery": Case("gallery", ("--head", 2, "--images-from", self.images), words),
            "top": Case("top", (self.images, "--head", 2, *READ, "-f", "jsonl"), words),
            "top raw": Case("top", (self.images, "--head", 2, "--raw", *READ, "-f", "jsonl"), second),
            "top pairs": Case("top", (self.images, "--head", 2, "--raw", *READ, "-f", "jsonl"), pairs),
        }
        made |= self._consumers(words, pairs, second, short)
        return made

    def _consumers(self, words: Path, pairs: Path, second: Path, short: tuple[str, str]) -> dict[str, Case]:
        """Return command lines of clip-concepts, clip-shift, clip-ablate and clip-segment."""
        made: dict[str, Case] = {}
        for by in ("words", "directions", "text"):
            made[f"concepts {by}"] = Case("concepts", (self.images, "--by", by, *READ, "--bundle", words, "--no-cache"))
        made["concepts all"] = Case("concepts", (self.images, "--neurons", "all", *READ, "--bundle", words))
        made["concepts signed"] = Case("concepts", (self.images, "--score", "signed", *READ, "--bundle", words))
        made["concepts pairs"] = Case("concepts", (self.images, *READ, "--bundle", pairs))
        shift = (self.folder / "photos", "--concept", "cat", *short, *READ, "-f", "jsonl", "--bundle")
        for by in ("norm", "signed", "text"):
            made[f"shift {by}"] = Case("shift", (*shift, second, "--by", by))
        made["shift overlap"] = Case("shift", (*shift, second, "--choose", "overlap", "--per-image"))
        made["shift pairs"] = Case("shift", (*shift, pairs))
        ablate = (self.folder / "photos", "--classes", self.classes, *short, *READ, "-f", "jsonl", "--bundle")
        kinds = ("--ablate", "all,large,small", "--reconstruct", "pc,words", "--keep", "50%,100%")
        made["ablate"] = Case("ablate", (*ablate, words, *kinds, "--each-layer", "--words-along", "direction,texts"))
        made["ablate pairs"] = Case("ablate", (*ablate, pairs, *kinds[:4]))
        made["ablate components"] = Case(
            "ablate", (*ablate, self.bundle("components"), "--reconstruct", "pc", "--components", "1,2")
        )
        made["ablate joint"] = Case("ablate", (*ablate, self.bundle("indirect"), "--ablate", "all,joint"))
        made["ablate heads"] = Case("ablate", (*ablate, self.bundle("heads"), "--ablate", "all"))
        small = ("--text", "cat", "--text", "dog", *short, "--batch-size", 4, "-f", "jsonl")
        for method in ("neurons", "signed", "effects", "attention", "rollout", "gradcam", "chefer", "textspan"):
            made[f"segment {method}"] = Case("segment", (self.images, *small, "--method", method, "--bundle", words))
        made["segment windows"] = Case("segment", (self.images, *small, "--size", 32, "--stride", 8, "--bundle", words))
        made["segment classes"] = Case("segment", (self.images, "--classes", self.classes, *small[4:], "--bundle", words))
        made["segment evaluate"] = Case("segment_eval", (self.scenes, *small[4:], "--bundle", words))
        for method in ("pairs", "heads", "neurons", "maskclip", "qqkk", "values"):
            labels = ("--classes", self.classes, "--size", 96, *small[4:], "--method", method, "--bundle", pairs)
            made[f"segment labels {method}"] = Case("segment", (self.images, *labels))
        labels = ("--size", 96, "--background", 0.3, *small[4:], "--bundle", pairs)
        made["segment labels evaluate"] = Case("segment_eval", (self.scenes, *labels))
        return made

    @property
    def _cue(self) -> tuple[Any, ...]:
        return ("--sees", "cat", "--writes", "dog", "--head", 2, "--pool", self.pool)

    @property
    def _labels(self) -> tuple[Any, ...]:
        return ("--truth", self.scenes / "scenes.jsonl", *READ)

    @property
    def _other(self) -> tuple[Any, ...]:
        return ("--judge", self.resnet, *READ)

    @property
    def _painting(self) -> tuple[Any, ...]:
        words = ("--llm", "template", "--painter", "emoji", "--take", 1, "--images", 3, "--batch-size", 3, "-f", "jsonl")
        return (*words, self.folder / "words.jsonl")

    def _pictures(self, words: bytes) -> str:
        """Return lines that name pictures."""
        line = json.loads(words.splitlines()[0])
        files = sorted(self.images.iterdir())[:3]
        return "".join(json.dumps(line | {"file": str(path), "caption": number}) + "\n" for number, path in enumerate(files))


def run_case(case: Case, *more: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command line within this process with further options."""
    return inside(case.command, *case.words, *more, stdin=case.stdin.read_bytes() if case.stdin is not None else b"")


def done(command: str, *words: Any) -> bytes:
    """Return the standard output of a command that succeeds."""
    ended = inside(command, *words)
    assert ended.returncode == 0, ended.stderr.decode()
    return ended.stdout
