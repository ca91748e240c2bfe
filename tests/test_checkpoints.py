"""Forms of weights files: each gives the same model as the plain form, or an error with names."""

import argparse
import json
import pickle
import shutil
import zipfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch
from helpers.weights_files import CONFIGS, local_dir, registered, save, state_of, torchscript
from torch import Tensor

from cliptools.errors import ModelError, UsageError
from cliptools.models.checkpoints.checkpoint import WithoutInitialisation, read_checkpoint
from cliptools.models.checkpoints.pickles import BESIDE
from cliptools.models.load import _is_finite, load_model, load_recorded_model
from cliptools.models.origin import find_origin

State = dict[str, Tensor]
NUMBERS = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(100)}


@pytest.fixture(scope="module", autouse=True)
def tiny_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with registered(tmp_path_factory.mktemp("configs")):
        yield


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return digests of the models in the plain form, by architecture."""
    folder = tmp_path_factory.mktemp("plain")
    names = ("Tiny-8", "Tiny-RN")
    return {name: load_model(name, str(save(state_of(name), folder / f"{name}.safetensors")), "cpu").sha256 for name in names}


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def other_average(state: State) -> State:
    return {key: value + 1 for key, value in state.items()}


def text_apart(state: State) -> State:
    """Return names of the text tower as in open_clip's CustomTextCLIP."""
    own = ("visual.", "logit_scale")
    return {key if key.startswith(own) else f"text.{key}": value for key, value in state.items()}


ARGUMENTS = argparse.Namespace(lr=1e-3, name="run", path=PurePosixPath("logs"))
FORMS: dict[str, Callable[[State], Any]] = {
    "module": lambda s: under("module.", s),
    "compiled": lambda s: under("_orig_mod.", s),
    "compiled in parallel": lambda s: {"model": under("module._orig_mod.", s), "epoch": 3},
    "lightning": lambda s: {
        "state_dict": under("model.", s),
        "pytorch-lightning_version": "2.1",
        "hyper_parameters": {"lr": 0.1},
    },
    "within clip": lambda s: {"state_dict": under("model.clip.", s)},
    "other prefix": lambda s: {"state_dict": under("image_text.encoder.", s)},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "step": torch.tensor(7)},
    "twice": lambda s: {"model": {"state_dict": s}},
    "average alone": lambda s: {"model_ema": under("module.", s)},
    "average beside": lambda s: {"model": s, "ema": other_average(s)},
    "average within": lambda s: {"state_dict": under("model.", s) | under("model_ema.", other_average(s))},
    "averaged by torch": lambda s: {"n_averaged": torch.tensor(9)} | under("module.", s),
    "openai": lambda s: s | NUMBERS,
    "constants": lambda s: s | {"attn_mask": torch.zeros(16, 16), "text_model.embeddings.position_ids": torch.arange(16)[None]},
    "logit bias": lambda s: s | {"logit_bias": torch.tensor([-10.0])},
    "logit scale of one number": lambda s: s | {"logit_scale": s["logit_scale"][None]},
    "text apart": text_apart,
    "parts compiled": lambda s: {key.replace("visual.", "visual._orig_mod."): value for key, value in s.items()},
    "parts recomputed": lambda s: {key.replace(".mlp.", "._checkpoint_wrapped_module.mlp."): s[key] for key in s},
    "beside: a loss": lambda s: {"state_dict": under("model.", s) | {"loss.temperature": torch.tensor(1.0)}},
    "beside: a queue": lambda s: under("module.", s | {"queue": torch.zeros(12, 64), "queue_ptr": torch.zeros(1)}),
    "beside: a teacher": lambda s: {"state_dict": under("model.", s) | under("teacher.", other_average(s))},
    "beside: a head": lambda s: s | {"classification_head.weight": torch.zeros(5, 12)},
    "student": lambda s: {"student": under("module.", s), "teacher": other_average(s)},
    "settings": lambda s: {
        "state_dict": s,
        "when": datetime.now(UTC),
        "scores": defaultdict(list, a=[1]),
        "last": deque([1.0], 9),
        "cast": int,
    },
    "namespace": lambda s: {"state_dict": s, "args": ARGUMENTS, "best": np.float64(0.7), "counts": np.arange(4)},
    "parameters": lambda s: {key: torch.nn.Parameter(value) for key, value in s.items() if value.is_floating_point()},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_the_plain_one(form: str, digests: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(FORMS[form](state_of("Tiny-8")), tmp_path / "weights.pt")
    assert load_model("Tiny-8", str(tmp_path / "weights.pt"), "cpu").sha256 == digests["Tiny-8"]
    lines = capsys.readouterr().err.splitlines()
    told = [line for line in lines if "average" in line or "logit_bias" in line or "image_text" in line or "left out" in line]
    assert len(told) == (form.startswith(("average ", "beside")) or form in ("logit bias", "other prefix")), lines


@pytest.mark.parametrize("form", ["module", "lightning", "openai", "namespace"])
def test_forms_of_old_files_and_resnets(form: str, digests: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(FORMS[form](state_of("Tiny-RN")), path, _use_new_zipfile_serialization=False)
    assert load_model("Tiny-RN", str(path), "cpu").sha256 == digests["Tiny-RN"]


def test_batch_norms_without_counters(digests: dict[str, str], tmp_path: Path) -> None:
    state = {key: value for key, value in state_of("Tiny-RN").items() if not key.endswith("num_batches_tracked")}
    assert load_model("Tiny-RN", str(save(state, tmp_path / "w.safetensors")), "cpu").sha256 == digests["Tiny-RN"]


@pytest.mark.parametrize("name", ["Tiny-8", "Tiny-RN"])
def test_openai_archives(name: str, digests: dict[str, str], tmp_path: Path) -> None:
    path = torchscript(state_of(name) | NUMBERS | {"transformer.attn_mask": torch.ones(16, 16)}, tmp_path / "ViT.pt")
    assert read_checkpoint(path).openai
    assert load_model(name, str(path), "cpu").sha256 == digests[name]
    half = {key: value.half() if value.is_floating_point() else value for key, value in state_of(name).items()}
    plain = load_model(name, str(save(half, tmp_path / "plain.safetensors")), "cpu")
    assert load_model(name, str(torchscript(half | NUMBERS, tmp_path / "half.pt")), "cpu").sha256 == plain.sha256


def test_an_archive_of_torchscript_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.jit deserialises nothing, and a pickle in place of the archive calls nothing."""
    path = torchscript(state_of("Tiny-8"), tmp_path / "good.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_: pytest.fail("the archive's code is interpreted"))
    assert len(read_checkpoint(path).tensors) == len(state_of("Tiny-8"))

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.mkdir, (tmp_path / "trap",)

    class Nested:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, (Path, "cwd")

    for number, payload in enumerate((Payload(), Nested(), [1, Payload()])):
        evil = tmp_path / f"evil{number}.pt"
        with zipfile.ZipFile(evil, "w") as archive:
            archive.writestr("evil/data.pkl", pickle.dumps(payload))
            archive.writestr("evil/constants.pkl", b"")
        with pytest.raises(ModelError, match=r"evil\d.pt: a TorchScript archive that cannot be read \("):
            read_checkpoint(evil)
    assert not (tmp_path / "trap").exists()


def test_torchscript_bytes_are_checked(tmp_path: Path) -> None:
    """Tensors beyond their records, compressed records, and invalid pickles are rejected."""
    good = torchscript({"a": torch.arange(64.0)}, tmp_path / "good.pt")

    def again(title: str, change: Callable[[str, bytes], bytes], packing: int = zipfile.ZIP_STORED) -> Path:
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(tmp_path / title, "w", packing) as target:
            for name in source.namelist():
                target.writestr(name, change(name, source.read(name)))
        return tmp_path / title

    for path, reason in (
        (again("short.pt", lambda name, data: data[:16] if name.endswith("data/0") else data), "beyond its bytes"),
        (again("packed.pt", lambda _, data: data, zipfile.ZIP_DEFLATED), "compressed"),
        (again("none.pt", lambda name, data: b"no" if name.endswith("data.pkl") else data), "cannot be read"),
    ):
        with pytest.raises(ModelError, match=reason):
            read_checkpoint(path)
    assert read_checkpoint(again("same.pt", lambda _, data: data)).tensors["a"].tolist() == list(range(64))


def test_allowed_types_leave_the_process_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    torch.save({"state_dict": state_of("Tiny-8"), "args": ARGUMENTS}, tmp_path / "w.pt")
    read_checkpoint(tmp_path / "w.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pt", weights_only=True)
    assert not any(name.startswith(("os.", "posix.", "subprocess.")) for name in BESIDE)
    kinds = {"int", "float", "str", "bool", "list", "dict", "complex", "range", "slice"}
    assert {name.partition(".")[2] for name in BESIDE if name.startswith("builtins.")} == kinds


class Whole(torch.nn.Module):
    """A module that is pickled as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("old", [False, True])
def test_pickles_of_other_objects_name_them(old: bool, tmp_path: Path) -> None:
    """The message does not advise to load the file unsafely."""
    for title, stored in (("whole", Whole()), ("list", {"state_dict": state_of("Tiny-8"), "log": Fraction(1, 3)})):
        path = tmp_path / f"{title}.pt"
        torch.save(stored, path, _use_new_zipfile_serialization=not old)
        with pytest.raises(ModelError) as caught:
            load_model("Tiny-8", str(path), "cpu")
        message = str(caught.value)
        assert ("test_checkpoints.Whole" if title == "whole" else "fractions.Fraction") in message
        assert "torch.save(model.state_dict(), FILE)" in message and "\n" not in message and message.isprintable()
        assert "weights_only" not in message and "safe_globals" not in message


def test_image_towers_alone(digests: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Tiny-8", "Tiny-RN"):
        state = state_of(name)
        text = {key: value for key, value in state.items() if not key.startswith("visual.")}
        tower = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
        source = save(state_of(name, 1) | text, tmp_path / f"{name}-whole.pt")  # another image tower, the right text tower
        texts = save(text, tmp_path / f"{name}-text.safetensors")
        forms = {"bare": tower, "visual": under("visual.", tower), "module": under("module.", tower)}
        for form, weights in forms.items():
            path = str(save(weights, tmp_path / name / f"{form}.pt"))
            with pytest.raises(ModelError, match=rf"{form}.pt: an image tower alone; .* --text-from TAG or FILE"):
                load_model(name, path, "cpu")
            for place in (source, texts):
                model = load_model(name, path, "cpu", text_from=str(place))
                assert model.sha256 == digests[name] and model.identity["text_from"] == str(place)
        again = load_recorded_model(model.identity)
        assert again.sha256 == model.sha256 and again.text_from == str(texts)
        capsys.readouterr()
        whole = str(save(state_of(name, 1) | under("visual.", tower), tmp_path / f"{name}-both.pt"))
        assert load_model(name, whole, "cpu", text_from=str(texts)).sha256 == digests[name]
        assert "its own text tower is left out" in capsys.readouterr().err


def test_text_towers_come_from_weights(tmp_path: Path) -> None:
    path = str(save(state_of("Tiny-8"), tmp_path / "w.pt"))
    tower = str(save({key: value for key, value in state_of("Tiny-8").items() if key.startswith("visual.")}, tmp_path / "v.pt"))
    with pytest.raises(UsageError, match="--text-from nowhere: neither a file, nor a folder with weights, nor a tag of Tiny-8"):
        find_origin("Tiny-8", path, "nowhere")
    with pytest.raises(UsageError, match="has a text tower; leave it out"):
        find_origin("emoji-vit2", None, path)
    with pytest.raises(ModelError, match="no text tower in it"):
        load_model("Tiny-8", tower, "cpu", text_from=tower)
    with pytest.raises(
        ModelError, match=r"does not fit Tiny-8: .* has another shape or type \(token_embedding.weight 90 x 16, exp"
    ):
        short = state_of("Tiny-8") | {"token_embedding.weight": torch.zeros(90, 16)}
        load_model("Tiny-8", tower, "cpu", text_from=str(save(short, tmp_path / "short.pt")))


def test_text_from_a_tag(digests: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import open_clip

    state = state_of("Tiny-8")
    released = save(state, tmp_path / "released.safetensors")
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-8", {"ours": {"url": "x", "quick_gelu": False}})
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", lambda settings: str(released))
    tower = save({key: value for key, value in state.items() if key.startswith("visual.")}, tmp_path / "v.pt")
    assert load_model("Tiny-8", str(tower), "cpu", text_from="ours").sha256 == digests["Tiny-8"]

    def unreachable(settings: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", unreachable)
    with pytest.raises(ModelError, match="--text-from ours: not in the cache, and the hub cannot be reached; load it once"):
        load_model("Tiny-8", str(tower), "cpu", text_from="ours")


def shards(state: State, folder: Path, kind: str) -> Path:
    """Write weights in two files with their index."""
    title = {"safetensors": "model", "bin": "pytorch_model"}[kind]
    places: dict[str, str] = {}
    keys = sorted(state)
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"{title}-{number:05d}-of-00002.{kind}"
        save({key: state[key] for key in part}, folder / name)
        places |= dict.fromkeys(part, name)
    index = folder / f"{title}.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_several_files(kind: str, digests: dict[str, str], tmp_path: Path) -> None:
    index = shards(state_of("Tiny-8"), tmp_path, kind)
    part = next(tmp_path.glob(f"*-00002-of-00002.{kind}"))
    for place in (index, part, tmp_path):
        assert load_model("Tiny-8", str(place), "cpu").sha256 == digests["Tiny-8"]
    part.unlink()
    with pytest.raises(ModelError, match=rf"index.json: its shard .*-00002-of-00002.{kind} is not beside it: all 2 are needed"):
        load_model("Tiny-8", str(index), "cpu")
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.bin"}}))
    with pytest.raises(ModelError, match=r"secret\.bin is not beside it"):
        load_model("Tiny-8", str(index), "cpu")
    index.write_text("[]")
    with pytest.raises(ModelError, match="not a list of shards"):
        load_model("Tiny-8", str(index), "cpu")


def test_folders_of_open_clip_hold_any_form(digests: dict[str, str], tmp_path: Path) -> None:
    folder = local_dir(tmp_path / "model", "Tiny-8")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save(FORMS["lightning"](state_of("Tiny-8")), folder / "epoch_3.pt")
    assert load_model(f"local-dir:{folder}", None, "cpu").sha256 == digests["Tiny-8"]
    cache = tmp_path / "models--somebody--tiny"
    shutil.copytree(folder, cache / "snapshots" / "abc")
    for at_main in (False, True):
        if at_main:
            (cache / "refs").mkdir()
            (cache / "refs" / "main").write_text("abc")
            (cache / "snapshots" / "older").mkdir()
        assert load_model(f"local-dir:{cache}", None, "cpu").sha256 == digests["Tiny-8"]


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = state_of("Tiny-8")
    gone = [key for key in state if "resblocks" in key][:5]
    changed = {key: value for key, value in state.items() if key not in gone}
    changed |= {f"adapter.{letter}\x1b[31m": torch.zeros(2) for letter in "abcd"}
    changed["visual.ln_pre.weight"] = torch.zeros(3)
    with pytest.raises(ModelError) as caught:
        load_model("Tiny-8", str(save(changed, tmp_path / "w.pt")), "cpu")
    message = str(caught.value)
    assert message.startswith(f"w.pt: does not fit Tiny-8: 5 of {len(state)} tensors are missing ({'; '.join(gone[:3])}; …), ")
    assert "4 are not known to it (adapter.a\\x1b[31m; adapter.b\\x1b[31m; adapter.c\\x1b[31m; …)" in message
    assert "1 has another shape or type (visual.ln_pre.weight 3, expected 16)" in message
    assert "\n" not in message and message.isprintable()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: {key: s[key] for key in s if key != "logit_scale"}, r"1 of \d+ tensors is missing \(logit_scale\)$"),
        (lambda s: s | {"visual.adapter.weight": torch.zeros(5)}, r"1 is not known to it \(visual.adapter.weight\)$"),
        (lambda s: s | {"transformer.resblocks.7.a": torch.zeros(5)}, r"layers|not known to it"),
        (lambda s: s | {"visual.proj": s["visual.proj"].to_sparse()}, r"visual.proj 16 x 12 sparse, expected 16 x 12\)$"),
        (lambda s: s | {"visual.proj": s["visual.proj"].to("meta")}, r"16 x 12 without its numbers, expected 16 x 12\)$"),
        (lambda s: {key: s[key] for key in s if "visual." not in key}, "a text tower alone: name it by --text-from FILE"),
        (
            lambda s: {key: s[key] for key in s if "visual." in key or key == "logit_scale"} | {"head.weight": torch.zeros(5)},
            "an image tower alone; name the text tower",
        ),
        (lambda s: s | {"visual.proj": torch.zeros(16, 12, dtype=torch.int8)}, r"visual.proj 16 x 12 int8, expected 16 x 12\)$"),
        (
            lambda s: under("student.", s) | under("teacher.", s),
            "several models, under the names student., teacher.: save the one",
        ),
        (lambda s: {"visual.trunk.a": s["logit_scale"]}, "it looks like an image tower of timm's"),
        (lambda s: {"blocks.0.attn.qkv.weight": s["logit_scale"]}, "it looks like a ViT as timm or DINO names it"),
        (lambda s: {"base_model.model.visual.lora_A.weight": s["logit_scale"]}, "a LoRA adapter .*merge it into that model"),
        (lambda s: {"epoch": 3, "loss": 0.5}, r"no weights in it \(it holds epoch, loss\); expected a state dict"),
        (lambda s: [1, 2], r"no weights in it \(it holds list\)"),
        (lambda s: {}, r"no weights in it \(it holds nothing\)"),
    ],
)
def test_other_contents_are_refused_with_a_reason(change: Callable[[State], Any], reason: str, tmp_path: Path) -> None:
    torch.save(change(state_of("Tiny-8")), tmp_path / "w.pt")
    with pytest.raises(ModelError, match=rf"^w.pt: .*{reason}"):
        load_model("Tiny-8", str(tmp_path / "w.pt"), "cpu")


GOOD = "safetensors, or .pt"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 605\n"
FILES: dict[str, tuple[bytes, str]] = {
    "lfs.safetensors": (LFS, "a Git LFS pointer, not the weights themselves: run `git lfs pull`"),
    "lfs.bin": (LFS, "a Git LFS pointer"),
    "page.pt": (b"<!DOCTYPE html><html><head><title>x</title>", "a web page, not weights: .* address of the file itself"),
    "denied.safetensors": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "a web page"),
    "empty.pt": (b"", "an empty file: fetch it again"),
    "zeros.bin": (bytes(999), "nothing but zeros"),
    "cut.safetensors": ((4000).to_bytes(8, "little") + b'{"a":', "a safetensors file that is cut short"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0", f"an ONNX graph: expected .{GOOD}"),
    "graph.bin": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "an ONNX graph"),
    "model.gguf": (b"GGUF\x03\x00\x00\x00", "a GGUF file"),
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file \\(TensorFlow's or Keras's weights\\)"),
    "flax_model.msgpack": (b"\x83\xablogit_scale\xc7", "a msgpack file \\(flax's weights\\)"),
    "flax.bin": (b"\x84\xaatext_model\x85", "a msgpack file"),
    "saved_model.pb": (b"\x0a\x02", "a file of TensorFlow's"),
    "array.npy": (b"\x93NUMPY\x01\x00", "a numpy array"),
    "packed.pt": (b"\x1f\x8b\x08\x00", "a gzip archive: unpack it first"),
    "error.bin": (b'{"error": "Repository not found"}', 'a JSON text, not weights \\(it begins with \'{"error"'),
    "notes.pth": (b"hello \x1b[31m\n", "a text, not weights \\(it begins with 'hello"),
    "noise.pt": (b"\xfe\xed\xfa\xce\x00\x01\x02\xff\xfe", "not a known weights file"),
    "cut.pt": (b"PK\x03\x04nothing", "cut short or damaged: fetch it again"),
    "stump.pth": (b"\x80\x02}q\x00", "a damaged file of torch.save"),
}


@pytest.mark.parametrize("title", FILES)
def test_other_files_are_refused_by_what_they_are(title: str, tmp_path: Path) -> None:
    content, reason = FILES[title]
    (tmp_path / title).write_bytes(content)
    with pytest.raises(ModelError, match=rf"^{title}: .*{reason}") as caught:
        load_model("Tiny-8", str(tmp_path / title), "cpu")
    assert str(caught.value).isprintable()


def test_zip_files_and_truncated_ones(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("photo.jpg", b"x")
    np.savez(tmp_path / "siglip.npz", a=np.zeros(3))
    plain = save(state_of("Tiny-8"), tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(plain[: len(plain) // 2])
    plain = save(state_of("Tiny-8"), tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(plain[: len(plain) // 2])
    for title, reason in (
        ("photos.zip", r"a zip file that is not a checkpoint \(it holds photo.jpg\)"),
        ("siglip.npz", "an archive of numpy arrays"),
        ("half.safetensors", "damaged or cut short"),
        ("half.pt", "cut short or damaged"),
    ):
        with pytest.raises(ModelError, match=rf"^{title}: .*{reason}"):
            load_model("Tiny-8", str(tmp_path / title), "cpu")
    (tmp_path / "whole.pt").rename(tmp_path / "misnamed.safetensors")  # by content, not by name
    assert len(read_checkpoint(tmp_path / "misnamed.safetensors").tensors) == len(state_of("Tiny-8"))


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"weights\.pt: Is a directory"):
        (tmp_path / "weights.pt").mkdir()
        read_checkpoint(tmp_path / "weights.pt")


def test_a_lora_folder(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save({"a": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    for words in ((f"local-dir:{tmp_path}", None), ("Tiny-8", str(tmp_path))):
        with pytest.raises(ModelError, match=r"adapter_model\.safetensors: a LoRA adapter"):
            load_model(*words, "cpu")


def test_every_tiny_config_still_loads_plainly(tmp_path: Path) -> None:
    """The reader gives the same result as open_clip, tensor by tensor."""
    import open_clip

    for name in ("Tiny-8", "Tiny-8-quickgelu", "Tiny-8-wide", "Tiny-RN"):
        path = save(state_of(name), tmp_path / f"{name}.pt")
        theirs = open_clip.create_model(name, pretrained=str(path)).state_dict()
        ours = load_model(name, str(path), "cpu").clip.state_dict()
        assert list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in theirs), CONFIGS[name]


def test_random_weights_are_left_out_in_one_thread_only() -> None:
    """Weights stay NaN until they are loaded; constants, buffers and other threads are as ever."""
    with WithoutInitialisation(), ThreadPoolExecutor(1) as other:
        layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4), torch.nn.MultiheadAttention(4, 2))
        elsewhere = other.submit(lambda: torch.nn.Linear(3, 4)).result()
        drawn = torch.nn.init.normal_(torch.zeros(3, requires_grad=True), std=2.0)
    finite = {key: bool(value.isfinite().all()) for key, value in layers.state_dict().items()}
    assert not any(finite[key] for key in ("0.weight", "0.bias", "2.in_proj_weight", "2.out_proj.weight"))
    assert all(finite[key] for key in ("1.weight", "1.bias", "1.running_var", "2.in_proj_bias"))
    assert drawn.isnan().all() and drawn.requires_grad and elsewhere.weight.isfinite().all()
    assert torch.nn.Linear(3, 4).weight.isfinite().all()


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),  # whose sum is infinite
        ([1.0, float("nan")], False),
        ([float("inf"), 1.0], False),
        ([float("inf"), -float("inf")], False),
    ],
)
def test_finite_tensors(values: list[float], finite: bool) -> None:
    assert _is_finite(torch.tensor(values)) == finite
    assert _is_finite(torch.tensor([60000.0, 60000.0], dtype=torch.float16))
    assert _is_finite(torch.tensor([], dtype=torch.float32)) and _is_finite(torch.tensor(3))
