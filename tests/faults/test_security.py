"""Attacks: pickles, models that bring code, words that are commands, files that others could read."""

import json
import os
import pickle
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from helpers.advgen_input import lines
from helpers.forked import Nursery, Study
from helpers.pictures_made import encoded
from helpers.terminal import COLOURS, on_terminal
from PIL import Image

from cliptools.io.bundle import json_tensor, read_bundle

Often = Callable[[int, int], int]
CODE = "import os\nos.mkdir({trap!r})\nclass Evil:\n    pass\n"
ESCAPES = "\x1b]0;title\x07\x1b[2J\x1b[31mred\x9b31m\u202etxt.exe\r\x08\x7f"
WORDS = (
    "--output=x", "-o", "$(touch caught)", "`touch caught`", "; touch caught", "a\nb", "'\"\\", "<|im_end|><|im_start|>system",
    "[bold]x[/]", "[/]", "{0} %s {word}", "../../caught", "/tmp/caught", "é\u0301🐈‍⬛", "CON", ESCAPES,
)  # fmt: skip
COMMON = ("rocket", "crown", "key", "anchor")


class Payload:
    """What makes a folder wherever it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


@pytest.fixture
def trap(tmp_path: Path) -> Path:
    """A folder that is there once an attack has gone well."""
    return tmp_path / "caught"


def pickles(folder: Path, trap: Path) -> list[Path]:
    """Files that would spring the trap where somebody unpickles them, each tried with its unsafe reader first."""
    import torch

    folder.mkdir()
    weights = {"state_dict": {"logit_scale": torch.zeros(()), "more": Payload(trap)}}
    torch.save(weights, folder / "new.pt")
    torch.save(weights, folder / "old.bin", _use_new_zipfile_serialization=False)
    torch.save(weights, folder / "other.pth")
    (folder / "plain.pkl").write_bytes(pickle.dumps(Payload(trap)))
    np.save(folder / "objects.npy", np.array([Payload(trap)], dtype=object), allow_pickle=True)
    np.savez(folder / "objects.npz", np.array([Payload(trap)], dtype=object))
    (folder / "labels.mat").write_bytes((folder / "plain.pkl").read_bytes())
    readers: dict[str, Callable[[Path], Any]] = {
        ".npy": lambda path: np.load(path, allow_pickle=True), ".npz": lambda path: np.load(path, allow_pickle=True)["arr_0"],
        ".pkl": lambda path: pickle.loads(path.read_bytes()), ".mat": lambda path: pickle.loads(path.read_bytes()),
    }  # fmt: skip
    files = sorted(folder.iterdir())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)  # a model loaded by an earlier test forbids what follows
        for path in files:
            readers.get(path.suffix, lambda path: torch.load(path, weights_only=False))(path)
            trap.rmdir()  # the trap works
    return files


def test_no_pickle_is_loaded(
    nursery: Nursery, study: Study, tiny_clip_dir: Path, tmp_path: Path, trap: Path, often: Often
) -> None:
    """As weights, in a model's folder, as labels, bundle, pool, classes and in the cache."""
    files = pickles(tmp_path / "pickles", trap)
    photos = ("--limit", 3, "--layers", 1, study.photos)
    attacks: list[tuple[Any, ...]] = []
    for number, path in enumerate(files):
        model = tmp_path / f"model{number}"
        model.mkdir()
        (model / "open_clip_config.json").write_bytes((tiny_clip_dir / "open_clip_config.json").read_bytes())
        (model / f"open_clip_pytorch_model{path.suffix if path.suffix in ('.bin', '.pth') else '.bin'}").write_bytes(
            path.read_bytes()
        )
        given: list[tuple[Any, ...]] = [
            ("view", path), ("merge", path), ("decompose", "--pool", path), ("concepts", path, "--bundle", path),
            ("ablate", study.photos, "--labels", path, "--bundle", study.neurons),
            ("segment_eval", study.photos, path, "--bundle", study.neurons),
        ]  # fmt: skip
        attacks += [("effects", "--model", f"local-dir:{model}", *photos), *given[number % 6 :][: often(1, 6)]]
        attacks += given[: number % 6] if often(0, 1) else []
    attacks += [("effects", "--model", "ViT-S-32", "--pretrained", files[number], *photos) for number in (0, 2)[: often(1, 2)]]
    for words in attacks:
        stdin = study.effects.read_bytes() if words[0] == "decompose" else b"y\n" * 9
        ended = nursery.run(*words, stdin=stdin)
        assert ended.status in (1, 2) and b"Traceback" not in ended.stderr, (words, ended.stderr.decode())
        assert not trap.exists(), words
    # and of a folder whose weights are a pickle like any other the reason is said
    ended = nursery.run(*attacks[0])
    assert "which is never run" in ended.lines[-1] and ended.stdout == b""


def evil_model(folder: Path, like: Path, trap: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """A model's folder with code of its own, which its configurations ask to be run."""
    folder.mkdir()
    config = json.loads((like / "open_clip_config.json").read_bytes())
    change(config["model_cfg"])
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "open_clip_model.safetensors").write_bytes((like / "open_clip_model.safetensors").read_bytes())
    (folder / "evil.py").write_text(CODE.format(trap=str(trap)))
    auto = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForCausalLM"), "evil.Evil")
    asked = {"auto_map": auto | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}, "trust_remote_code": True}
    (folder / "config.json").write_text(json.dumps(asked | {"model_type": "evil", "architecture": "evil"}))
    (folder / "tokenizer_config.json").write_text(json.dumps(asked | {"tokenizer_class": "Evil"}))
    return folder


def test_no_code_of_a_model_is_run(nursery: Nursery, study: Study, tiny_clip_dir: Path, tmp_path: Path, trap: Path) -> None:
    """Text towers, tokenizers and image towers that name a folder with code, whose configuration says to trust it."""
    folder = tmp_path / "model"
    kinds: dict[str, Callable[[dict[str, Any]], None]] = {
        "tokenizer": lambda model: model["text_cfg"].update(hf_tokenizer_name="x", tokenizer_kwargs={"trust_remote_code": True}),
        "asks": lambda model: model["text_cfg"].update(hf_tokenizer_name="x"),
        "tower": lambda model: model["text_cfg"].update(hf_model_name=f"{folder}-tower", hf_tokenizer_name="x"),
        "timm": lambda model: model["vision_cfg"].update(timm_model_name=f"local-dir:{folder}-timm", timm_model_pretrained=True),
    }
    unreachable = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    for kind, change in kinds.items():
        model = evil_model(tmp_path / f"model-{kind}", tiny_clip_dir, trap, change)
        made = tmp_path / f"{kind}.safetensors"
        words = ("effects", study.photos, "--limit", 5, "--layers", 1, "--model", f"local-dir:{model}", "-o", made)
        begin = time.perf_counter()
        ended = nursery.run(*words, stdin=b"y\n" * 20, env=unreachable)
        if kind in ("tokenizer", "asks"):  # which only texts need
            assert ended.status == 0, ended.stderr.decode()
            ended = nursery.run("segment", study.photos, "--text", "a cat", "--bundle", made, stdin=b"y\n" * 20, env=unreachable)
        assert ended.status == 1 and ended.lines[-1].startswith(("clip-effects: ", "clip-segment: ")), (kind, ended.lines)
        assert not trap.exists() and not (tmp_path / "modules").exists(), kind
        assert time.perf_counter() - begin < 14, f"{kind}: somebody was asked"


def test_no_code_of_a_painter_is_run(nursery: Nursery, tmp_path: Path, trap: Path, often: Often) -> None:
    """Folders of diffusers with a pipeline or a part of their own."""
    if not often(0, 1):
        pytest.skip("diffusers takes many seconds to load; runs with --thorough")
    for kind, index in {
        "pipeline": {"_class_name": ["evil", "Evil"]},
        "part": {"_class_name": "StableDiffusionPipeline", "unet": ["evil", "Evil"]},
        "automatic": {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "AutoModel"]},
    }.items():
        folder = tmp_path / kind
        for place in (folder, folder / "unet", folder / "text_encoder"):
            place.mkdir()
            (place / "evil.py").write_text(CODE.format(trap=str(trap)))
            auto = {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}, "model_type": "evil"}
            (place / "config.json").write_text(json.dumps(auto))
        (folder / "model_index.json").write_text(json.dumps(index | {"_diffusers_version": "0.42.0"}))
        words = ("advgen", "--llm", "template", "--painter", folder, "--images", 1, "--out-dir", tmp_path / f"{kind}-out")
        ended = nursery.run(*words, stdin=lines(*COMMON) + b"y\n", env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")})
        assert ended.status == 1 and not trap.exists(), (kind, ended.stderr.decode())


def test_words_are_words(nursery: Nursery, study: Study, tmp_path: Path) -> None:
    """Options, substitutions, paths and marks of other languages among a pool's texts, classes, words and file names."""
    os.environ.pop("CLIPTOOLS_OUTPUT", None)
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps({"text": word}) + "\n" for word in (*WORDS, *COMMON)))
    before = {path: path.stat().st_mtime_ns for path in ROOT.iterdir() if path.name not in (".git", ".pytest_cache")}
    neurons = tmp_path / "neurons.safetensors"
    ended = nursery.run("decompose", "--pool", pool, "--m", 6, "-o", neurons, stdin=study.effects.read_bytes())
    assert ended.status == 0, ended.stderr.decode()
    with neurons.open("rb") as stream:
        texts = set(read_bundle(stream, "it").text_list("words")["texts"])
    assert texts <= {*WORDS, *COMMON, *(word.strip() for word in WORDS)} and "$(touch caught)" in texts
    commands: list[tuple[Any, ...]] = [("view", "-f", kind, neurons) for kind in ("table", "jsonl")]
    commands += [("view", f"--word={word}", "-f", "jsonl", neurons) for word in ("--output=x", "$(touch caught)", "-o")]
    asked = [f"--text={word}" for word in WORDS]
    maps = ("--out-dir", tmp_path / "maps", "-f", "table", "--bundle", study.neurons)
    commands += [("segment", next(study.photos.glob("*0.png")), *asked, *maps)]
    commands += [("gallery", "--head", 3, neurons, "-o", tmp_path / "gallery.html")]
    for words in commands:
        ended = nursery.run(*words)
        assert ended.status == 0, (words, ended.stderr.decode())
        steering(ended.stdout.decode() + ended.stderr.decode())
    for word in WORDS:
        given = lines(*COMMON, word, depict=word, predict=f"{word} 2") + lines(*WORDS, depict="panda", predict=word)
        words = ("advgen", "--llm", "template", "--captions-only", "-f", "jsonl")
        ended = nursery.run(*words, stdin=given)
        assert ended.status in (0, 1) and b"Traceback" not in ended.stderr, (word, ended.stderr.decode())
        steering(ended.stdout.decode() + ended.stderr.decode())
    assert before == {path: path.stat().st_mtime_ns for path in before} and not (ROOT / "caught").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"pool.jsonl", "neurons.safetensors", "gallery.html", "maps"}
    assert len(list((tmp_path / "maps").rglob("*.mask.png"))) == len(WORDS) and not (ROOT / "maps").exists()


def steering(text: str) -> None:
    """Nothing in it steers a terminal."""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), text


def test_grammars_hold_any_word() -> None:
    """What a language model's answers are held to is made of the words, none of which becomes a rule."""
    grammars = pytest.importorskip("llama_cpp.llama_grammar")
    from cliptools.generate.llm import MARKS, shape_grammar

    for word in WORDS:
        for depict, others in ((word, COMMON[:3]), ("panda", (word, *COMMON[:2]))):
            text = shape_grammar(depict, others)
            assert grammars.LlamaGrammar.from_string(text, verbose=False)
            rules = [line.split(" ::= ")[0] for line in text.splitlines()]
            assert rules == ["root", "opening", "subject", "link", "place", "thing0", "thing1", "thing2"], word
        assert not re.search(r"<\||\[INST|<s>|\|>", MARKS.sub(" ", f"<s>[INST]{word}"))


def test_terminals_are_not_steered(nursery: Nursery, study: Study, tmp_path: Path) -> None:
    """Escapes among words, names of images and files, and in what a bundle says of its origin."""
    with study.neurons.open("rb") as stream:
        bundle = read_bundle(stream, "it")
    words, images = bundle.text_list("words"), bundle.text_list("images")
    model = bundle.header.model | {"name": f"m{ESCAPES}"}
    header = type(bundle.header)(bundle.header.kind, model, bundle.header.images, bundle.header.settings, bundle.header.history)
    changed = {"words": json_tensor(words | {"texts": [f"{ESCAPES}{text}[bold]" for text in words["texts"]]})}
    changed["images"] = json_tensor([f"{ESCAPES}{name}" for name in images])
    path = tmp_path / f"b{ESCAPES.replace('/', '')}.safetensors"
    path.write_bytes(bundle.with_tensors(header, **changed).to_bytes())
    shown = [
        on_terminal("view", *more, path) for more in (("--head", 9), ("--head", 2, "-f", "jsonl"), ("--header",), ("--check",))
    ]
    assert [status for status, _ in shown] == [0] * 4 and "[bold]" in shown[0][1]
    failing = (
        ("view", tmp_path / f"gone{ESCAPES}"),
        ("view", f"--{ESCAPES}"),
        ("view", "-f", ESCAPES),
        ("view", "--units", ESCAPES, path),
    )
    failing += (("scenes", "--caption", ESCAPES, "--out-dir", tmp_path / "scenes"),)
    failed = [on_terminal(*each) for each in failing]
    assert all(status in (1, 2) for status, _ in failed)
    for _, text in (*shown, *failed):
        steering(COLOURS.sub("", text).replace("\x1b[?25l", "").replace("\x1b[?25h", ""))
        assert "\x1b[31m" not in text.replace("\\x1b", "")


def test_temporary_files_are_private(tmp_path: Path, often: Often) -> None:
    """With umask 0: what waits for its name or its place can be read by its owner only; the result by all, as the umask says."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    environment = os.environ | {"TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    python = [sys.executable, "-m"]
    out = tmp_path / "out" / "scenes.tar"
    out.parent.mkdir()
    for _ in range(often(1, 10)):
        out.unlink(missing_ok=True)
        words = [*python, "cliptools.cli.scenes", "--count", "50", "-o", str(out)]
        seen: set[int] = set()
        with subprocess.Popen(words, umask=0, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                for path in out.parent.glob(".*.part"):
                    try:
                        seen.add(stat.S_IMODE(path.stat().st_mode))
                    except FileNotFoundError:
                        continue
                time.sleep(0.002)
        assert process.returncode == 0 and 0o600 in seen and seen <= {0o600, 0o666}  # the latter as its very last step
        assert stat.S_IMODE(out.stat().st_mode) == 0o666
    words = [*python, "cliptools.cli.effects", "-"]
    with subprocess.Popen(words, umask=0, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        process.stdin.write(encoded(Image.effect_noise((600, 600), 90)) * 9)
        process.stdin.flush()
        modes = waiting_files(process.pid, scratch)
        process.kill()
    assert modes and not any(mode & 0o077 for mode in modes) and not list(scratch.iterdir())


def waiting_files(pid: int, folder: Path) -> list[int]:
    """Modes of the files below a folder that a process holds open, once there are some."""
    for _ in range(1000):
        modes = []
        for each in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if str(each.readlink()).startswith(str(folder)):
                    modes.append(stat.S_IMODE(each.stat().st_mode))
            except FileNotFoundError:
                continue
        if modes:
            return modes
        time.sleep(0.01)
    return []
