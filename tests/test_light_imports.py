"""Commands import what they need: without a model neither open_clip nor timm, with one no large optional library."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.soundness import sound
from open_clip.model import CustomTextCLIP
from PIL import Image
from safetensors.torch import save_file

from cliptools.io.bundle import Bundle
from cliptools.io.header import Header
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_pool
from cliptools.text.vocabularies import load_pool

TEXTS = "cat\ndog\nvacuum cleaner\n"
LOADED = """
import sys
import importlib
name, *arguments = sys.argv[1:]
try:
    importlib.import_module(f"cliptools.cli.{name}").main(arguments)
except SystemExit as ended:
    assert not ended.code, ended.code
print([package for package in ("open_clip", "timm", "torch") if package in sys.modules], file=sys.stderr)
"""

LARGE = ("transformers", "timm", "torch._dynamo", "torch._inductor", "sympy", "scipy.stats", "matplotlib", "pandas")
PROGRAM = """
import sys
import importlib
name, large, *arguments = sys.argv[1:]
sys.argv = [f"clip-{name}", *arguments]
try:
    importlib.import_module(f"cliptools.cli.{name}").main()
except SystemExit as ended:
    assert not ended.code, ended.code
assert "open_clip" in sys.modules
print([package for package in large.split() if package in sys.modules], file=sys.stderr)
"""
IN_PYTHON = """
from cliptools.cli import effects
try:
    effects.main(["--limit", "1", "--layers", "6", "-q", "-o", sys.argv[1]])
except SystemExit as ended:
    assert not ended.code, ended.code
import open_clip
print(open_clip.hf_model.transformers.__name__, open_clip.timm_model.timm.__name__)
"""
OWN = "import importlib, sys, torch\nfrom cliptools.console import OWN_PROCESS\nOWN_PROCESS.set(True)\n"
COMPILER_LATER = """
from cliptools.library_patches import COMPILER, _LaterCompiler, ensure_torchvision
ensure_torchvision()
assert "torchvision" in sys.modules and COMPILER not in sys.modules and "torch._dynamo" not in sys.modules
from torchvision.ops import roi_align
supported = {device: sys.modules[roi_align.__module__].is_compile_supported(device) for device in ("cpu", "meta")}
import torch._dynamo.utils as real
assert supported == {device: real.is_compile_supported(device) for device in supported}
later = _LaterCompiler(COMPILER)
assert later.counters is real.counters and later.is_compile_supported("cpu") == real.is_compile_supported("cpu")
assert not hasattr(later, "__path__")
"""
NEEDS_BOTH = """
from cliptools.library_patches import import_open_clip
assert import_open_clip().names == ["own transformers", "own timm"]
assert {name for name in sys.modules if name in ("transformers", "timm")} == {"transformers", "timm"}
"""
HUGGING_FACE = """
from cliptools.console import OWN_PROCESS
from cliptools.library_patches import import_open_clip
OWN_PROCESS.set(sys.argv[2] == "own")
open_clip = import_open_clip()
tower = open_clip.hf_model.HFTextEncoder
assert (open_clip.hf_model.transformers is None) == (sys.argv[2] == "own")
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_texts
model = load_model(f"local-dir:{sys.argv[1]}", device="cpu")
assert type(model.clip.text) is tower is open_clip.hf_model.HFTextEncoder is open_clip.model.HFTextEncoder
print(model.sha256, encode_texts(model, ["a cat", "two dogs"]).tolist())
import transformers, timm
from transformers import dynamic_module_utils
assert dynamic_module_utils.get_cached_module_file.__module__ == dynamic_module_utils.__name__
"""


def run_python(code: str, *arguments: str | Path, path: str = str(ROOT), **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, without the network, and return what it wrote."""
    environment = os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"} | variables
    words = [sys.executable, "-c", code, *map(str, arguments)]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended


def imported(folder: Path, *arguments: str | Path) -> str:
    """Run a command in a separate process and return the model libraries that it imported."""
    environment = os.environ | {"CLIPTOOLS_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", LOADED, *map(str, arguments), "-q"]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr.splitlines()[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with words and thumbnails whose header names emoji-vit2, and a cache with the texts of a vocabulary."""
    folder = tmp_path_factory.mktemp("light")
    model = load_model("emoji-vit2", device="cpu")
    whole = sound()
    width = int(model.clip.text_projection.shape[1])
    tensors = {key: value for key, value in whole.tensors.items() if key not in ("direction", "mean", "component")}
    units = len(whole["unit"])
    direction = whole["direction"].repeat(-(-width // whole["direction"].shape[1]), axis=1)[:, :width]
    tensors["direction"] = (direction / (direction**2).sum(1, keepdims=True).clip(1e-9) ** 0.5).astype("float32")
    assert tensors["direction"].shape == (units, width)
    header = Header("effects", model.identity, whole.header.images, {"effect": "second"})
    (folder / "bundle.safetensors").write_bytes(Bundle(header, tensors).to_bytes())
    (folder / "pool.txt").write_text(TEXTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPTOOLS_CACHE", str(folder / "cache"))
        encode_pool(model, load_pool(str(folder / "pool.txt")))
    return folder


def decomposition(folder: Path, out: Path) -> tuple[str | Path, ...]:
    """Return the arguments of clip-decompose for the bundle and its cached texts."""
    return ("decompose", folder / "bundle.safetensors", "--pool", folder / "pool.txt", "--m", "2", "-o", out)


def test_decompose_with_cached_texts_loads_no_model(folder: Path) -> None:
    """The cache's key is the same from the header and from the loaded model."""
    words = decomposition(folder, folder / "out.safetensors")
    assert imported(folder, *words) == "['torch']"
    assert "open_clip" in imported(folder, *words, "--no-cache")


def test_lists_of_imagenet_are_read_without_open_clip(folder: Path) -> None:
    """Once CLIP's templates and names are cached, they need no model either."""
    bundle = folder / "bundle.safetensors"
    words = ("decompose", bundle, "--pool", "imagenet", "--template", "a {}", "--m", "2", "-o", folder / "imagenet.safetensors")
    assert "open_clip" in imported(folder, *words)
    assert imported(folder, *words) == "['torch']"
    code = (
        "import sys; from cliptools.models.templates import imagenet_templates; "
        "print(len(imagenet_templates()), 'open_clip' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ended.stdout.split() == ["80", "False"]


def test_spurious_words_of_cached_texts_need_no_model(folder: Path) -> None:
    """A second run finds the class names in the cache, and writes the same records."""
    imported(folder, *decomposition(folder, folder / "words.safetensors"))
    options = ("--depict", "cat", "--predict", "a kind of dog", "--near", "1", "--by", "overlap")
    runs = [("spurious", folder / "words.safetensors", *options, "-o", folder / f"{run}.jsonl") for run in ("first", "second")]
    assert "open_clip" in imported(folder, *runs[0])
    assert imported(folder, *runs[1]) == "['torch']"
    first, second = ((folder / f"{run}.jsonl").read_bytes() for run in ("first", "second"))
    assert first == second
    assert first


@pytest.mark.parametrize("name", ["view", "sheet", "gallery"])
def test_commands_that_show_a_bundle_load_neither_model_nor_torch(folder: Path, name: str) -> None:
    options = ("-f", "jsonl") if name == "view" else ()
    assert imported(folder, name, folder / "bundle.safetensors", *options, "-o", folder / f"{name}.png") == "[]"


def test_a_sheet_of_files_loads_no_model(folder: Path) -> None:
    """Only one with --outlines does."""
    (folder / "pictures").mkdir()
    for name in sound().text_list("images"):
        Image.new("RGB", (30, 24), "red").save(folder / "pictures" / name)
    words = ("sheet", folder / "bundle.safetensors", "--images-from", folder / "pictures", "-o", folder / "sheet.png")
    assert imported(folder, *words) == "['torch']"


def large_imports(folder: Path, name: str, *arguments: str | Path) -> str:
    """Run a command as a program, which loads a model, and return the large libraries that it imported."""
    ended = run_python(PROGRAM, name, " ".join(LARGE), *arguments, "-q", CLIPTOOLS_CACHE=str(folder / "cache"))
    return ended.stderr.splitlines()[-1]


def test_commands_with_a_model_import_no_large_optional_library(folder: Path, tiny_clip_dir: Path) -> None:
    """The image tower of an embedded model and of a folder, and texts of both, with CLIP's own tokenizer."""
    own = folder / "own.safetensors"
    words = ("--limit", "2", "--layers", "1", "--model", f"local-dir:{tiny_clip_dir}", "-o", own)
    pool = ("--pool", folder / "pool.txt", "--m", "2", "--no-cache", "-o", folder / "out.safetensors")
    photos = folder / "photos"
    photos.mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (30, 24), name).save(photos / f"{name}.png")
    assert large_imports(folder, "effects", "--limit", "1", "--layers", "6", "-o", folder / "one.safetensors") == "[]"
    assert large_imports(folder, "effects", photos, *words) == "[]"
    assert large_imports(folder, "decompose", folder / "bundle.safetensors", *pool) == "[]"
    assert large_imports(folder, "decompose", own, *pool) == "[]"


def test_a_caller_of_a_command_has_the_whole_open_clip(tmp_path: Path) -> None:
    """Arguments from Python are a sign that the process goes on afterwards."""
    assert run_python("import sys" + IN_PYTHON, tmp_path / "one.safetensors").stdout.split() == ["transformers", "timm"]


def test_the_compiler_is_imported_when_it_is_called() -> None:
    run_python(OWN + COMPILER_LATER)


def test_an_open_clip_that_needs_the_libraries_gets_them(tmp_path: Path) -> None:
    for name in ("transformers", "timm"):
        (tmp_path / f"{name}.py").write_text(f"name = 'own {name}'\n")
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip" / "__init__.py").write_text("from .model import names\n")
    (tmp_path / "open_clip" / "model.py").write_text("import transformers, timm\nnames = [transformers.name, timm.name]\n")
    run_python(OWN + NEEDS_BOTH, path=f"{tmp_path}{os.pathsep}{ROOT}")


def test_a_text_tower_and_tokenizer_of_transformers_load_in_a_command(tmp_path: Path, tiny_clip_dir: Path) -> None:
    """The embeddings are those of a process that imports everything first."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, PreTrainedTokenizerFast

    tower, model = tmp_path / "tower", tmp_path / "model"
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 9}
    BertConfig(**sizes, max_position_embeddings=16).save_pretrained(tower)
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "a", "cat", "two", "dogs"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(model)
    config = json.loads((tiny_clip_dir / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] = {
        "hf_model_name": str(tower), "hf_tokenizer_name": str(model), "hf_model_pretrained": False, "hf_proj_type": "linear",
        "hf_pooler_type": "cls_pooler", "context_length": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    state = CustomTextCLIP(**config["model_cfg"]).state_dict()
    (model / "open_clip_config.json").write_text(json.dumps(config))
    save_file({key: value.contiguous() for key, value in state.items()}, model / "open_clip_model.safetensors")
    light, whole = (run_python("import sys" + HUGGING_FACE, model, process).stdout for process in ("own", "shared"))
    assert light == whole and len(light) > 100
