"""The activation of the weights' training, as far as it is known, and the digest of the computation."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.weights_files import CONFIGS, local_dir, registered, save, state_of, torchscript

from cliptools.console import set_output
from cliptools.errors import ModelError, StreamError
from cliptools.io import shift_baseline
from cliptools.io.header import Header, model_difference, recorded_model
from cliptools.io.shard_file import run_difference
from cliptools.models.activation import trained_activation
from cliptools.models.architecture import describe_architecture
from cliptools.models.load import load_model, load_recorded_model
from cliptools.models.origin import find_origin


@pytest.fixture(scope="module", autouse=True)
def tiny_names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with registered(tmp_path_factory.mktemp("configs")):
        yield


def beside(name: str, settings: dict[str, Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(json.dumps(settings))
        return save(state_of("Tiny-8"), folder / "weights.safetensors")

    return make


def hidden(act: str, **sizes: int) -> dict[str, Any]:
    """Return transformers' config.json."""
    return {"vision_config": {"hidden_act": act, **sizes}}


def called(name: str) -> Callable[[Path], Path]:
    return lambda folder: save(state_of("Tiny-8"), folder / name)


def half_matrices(folder: Path) -> Path:
    """Return weights as OpenAI's code keeps them on a GPU."""
    state = state_of("Tiny-8")
    halves = {key: value.half() for key, value in state.items() if value.ndim > 1 or "attn" in key or "mlp" in key}
    return save(state | halves, folder / "weights.pt")


QUICK = {
    "own config": beside("open_clip_config.json", {"model_cfg": CONFIGS["Tiny-8-quickgelu"]}),
    "hidden_act": beside("config.json", {"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}}),
    "hidden_act of texts": beside("config.json", {"text_config": {"hidden_act": "quick_gelu"}}),
    "its name": called("openai-clip.pt"),
    "its name, elsewhere": called("clip_OpenAI_v2.safetensors"),
    "quickgelu": called("vit-quick_gelu.bin"),
    "folder": called("openai/weights.safetensors"),
    "hub": called("models--openai--clip-vit-base-patch32/snapshots/3d74acf/model.safetensors"),
    "types": half_matrices,
    "config of the same sizes": beside("config.json", hidden("quick_gelu", hidden_size=16, num_hidden_layers=2, patch_size=8)),
}
PLAIN = {
    "own config": beside("open_clip_config.json", {"model_cfg": CONFIGS["Tiny-8"]}),
    "hidden_act": beside("config.json", {"vision_config": {"hidden_act": "gelu"}}),
    "config before name": lambda folder: beside("config.json", {"vision_config": {"hidden_act": "gelu"}})(folder).rename(
        folder / "openai.safetensors"
    ),
}
UNKNOWN = {
    "nothing": called("weights.safetensors"),
    "no config": beside("config.json", {"vision_config": [1]}),
    "config of another model": beside("open_clip_config.json", {"model_cfg": CONFIGS["Tiny-8-deep"] | {"quick_gelu": True}}),
    "transformers' width": beside("config.json", hidden("gelu", hidden_size=768)),
    "transformers' depth": beside("config.json", hidden("gelu", hidden_size=16, num_hidden_layers=12)),
    "transformers' patch": beside("config.json", hidden("gelu", hidden_size=16, num_hidden_layers=2, patch_size=32)),
    "damaged config": beside("open_clip_config.json", {"model_cfg": ["quick_gelu"]}),
}


@pytest.mark.parametrize("case", QUICK)
def test_quickgelu_under_a_gelu_name(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = QUICK[case](tmp_path)
    model = load_model("Tiny-8", str(path), "cpu")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "GELU" in line]
    assert line.startswith(f"warning: Tiny-8 computes GELU, but {path.name} was trained with QuickGELU (")
    assert line.endswith("all numbers will be off; use --model Tiny-8-quickgelu")
    assert model.identity["activation"] == {"image": "GELU", "text": "GELU"}
    assert model.identity["sources"]["activation"].startswith(f"name Tiny-8; {path.name} has QuickGELU, ")
    load_model("Tiny-8-quickgelu", str(path), "cpu")
    assert "GELU" not in capsys.readouterr().err


@pytest.mark.parametrize("case", PLAIN)
def test_gelu_under_a_quickgelu_name(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = PLAIN[case](tmp_path)
    load_model("Tiny-8-quickgelu", str(path), "cpu")
    line = capsys.readouterr().err
    assert f"warning: Tiny-8-quickgelu computes QuickGELU, but {path.name} was trained with GELU (" in line
    assert "use --model Tiny-8\n" in line
    load_model("Tiny-8", str(path), "cpu")
    assert "GELU" not in capsys.readouterr().err


@pytest.mark.parametrize("case", UNKNOWN)
def test_where_nothing_tells_a_note_says_so(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = UNKNOWN[case](tmp_path)
    model = load_model("Tiny-8-quickgelu", str(path), "cpu")
    expected = "nothing in weights.safetensors says which activation it was trained with; Tiny-8-quickgelu computes QuickGELU"
    assert expected in capsys.readouterr().err.splitlines()
    assert model.identity["sources"]["activation"] == "name Tiny-8-quickgelu; nothing known of weights.safetensors"
    set_output(quiet=True, as_json=False)
    try:
        load_model("Tiny-8", str(path), "cpu")
    finally:
        set_output(quiet=False, as_json=False)
    assert "activation" not in capsys.readouterr().err


def test_openai_archives_and_state_dicts(tmp_path: Path) -> None:
    """They hold three numbers beside the weights; TorchScript archives are not run to read them."""
    numbers = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(16), "vocab_size": torch.tensor(100)}
    folder = tmp_path / "weights"
    path = save(state_of("Tiny-8") | numbers, folder / "mine.pt")
    trained = trained_activation(find_origin("Tiny-8", str(path)))
    assert trained is not None and trained.quick and "OpenAI" in trained.reason
    for name, settings in (("open_clip_config.json", {"model_cfg": CONFIGS["Tiny-8"]}), ("config.json", hidden("gelu"))):
        (folder / name).write_text(json.dumps(settings))  # of another file in the same folder
        assert trained_activation(find_origin("Tiny-8", str(path))) == trained
        (folder / name).unlink()
    for title, beside in (("theirs", numbers), ("other", {})):
        path = torchscript(state_of("Tiny-8") | beside, folder / f"{title}.pt")
        trained = trained_activation(find_origin("Tiny-8", str(path)))
        assert (trained is not None) == bool(beside)


def test_released_files_are_known_by_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    import open_clip

    path = save(state_of("Tiny-8"), tmp_path / "renamed.pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    addresses = {
        "a": (f"https://openaipublic.azureedge.net/clip/models/{digest}/ViT.pt", True),
        "b": (f"https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/vit-b-{digest[:8]}.pt", False),
    }
    for tag, (url, quick) in addresses.items():
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Other", {tag: {"url": url, "quick_gelu": quick}})
        trained = trained_activation(find_origin("Tiny-8", str(path)))
        assert trained is not None and (trained.quick, trained.reason) == (quick, f"its sha256 is that of Other {tag}")
    other = save(state_of("Tiny-8", seed=1), tmp_path / "other.pt")
    assert trained_activation(find_origin("Tiny-8", str(other))) is None


@pytest.mark.parametrize(
    ("name", "file", "quick"),
    [
        ("ViT-B-32", "CLIP-ViT-B-32-laion2B-s34B-b79K.bin", False),
        ("ViT-B-32", "vit_b_32-quickgelu-laion400m_e32-46683a32.pt", True),
        ("ViT-B-32", "laion400m.bin", True),
        ("ViT-B-16", "laion400m.bin", False),
        ("ViT-B-32-quickgelu", "metaclip-b32-400m.safetensors", True),
        ("ViT-B-16", "DFN2B/open_clip_pytorch_model.bin", True),
        ("ViT-L-14", "laion.bin", None),
        ("RN50", "cc12m.pt", True),
    ],
)
def test_names_hold_tags(name: str, file: str, quick: bool | None, tmp_path: Path) -> None:
    path = save({"logit_scale": torch.zeros(())}, tmp_path / "weights" / file)
    trained = trained_activation(find_origin(name, str(path)))
    assert (None if trained is None else trained.quick) == quick


def test_a_folder_whose_config_and_weights_disagree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = local_dir(tmp_path / "openai-vit", "Tiny-8")
    model = load_model(f"local-dir:{folder}", None, "cpu")
    assert "its folder's name contains openai): all numbers will be off; set quick_gelu to true in its open_clip_config.json" in (
        capsys.readouterr().err
    )
    assert model.identity["sources"]["activation"].startswith("open_clip_config.json; open_clip_model.safetensors has QuickGELU")
    load_model(f"local-dir:{local_dir(tmp_path / 'mine', 'Tiny-8')}", None, "cpu")
    assert "GELU" not in capsys.readouterr().err


def test_same_weights_with_another_activation_are_another_model(tmp_path: Path) -> None:
    path = str(save(state_of("Tiny-8"), tmp_path / "weights.safetensors"))
    plain, quick = (load_model(name, path, "cpu").identity for name in ("Tiny-8", "Tiny-8-quickgelu"))
    assert plain["sha256"] == quick["sha256"] and plain["architecture"] != quick["architecture"]
    reason = (
        "the same weights, another architecture (activation GELU of the image tower and GELU of the text tower instead of "
        "QuickGELU of the image tower and QuickGELU of the text tower)"
    )
    assert model_difference(plain, quick) == reason
    headers = [Header("partial", model, {}, {}) for model in (plain, quick)]
    assert run_difference(*headers) == f"a model with {reason}"
    old = {key: value for key, value in quick.items() if key != "architecture"}
    assert model_difference(plain, old) is None
    groups = [{"model": recorded_model(model), "settings": {}} for model in (plain, quick, old)]
    unsaid = "another model: the same weights, another architecture (activation, grid, preprocessing, norms, heads or pooling)"
    assert [shift_baseline._difference(group, groups[0]) for group in groups] == [None, unsaid, None]
    assert recorded_model(plain)["architecture"] == plain["architecture"] and "architecture" not in recorded_model(old)


def test_a_model_that_computes_otherwise_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = local_dir(tmp_path / "model", "Tiny-8")
    recorded = load_model(f"local-dir:{folder}", None, "cpu").identity
    assert load_recorded_model(recorded, "cpu").identity == recorded
    capsys.readouterr()
    old = {key: value for key, value in recorded.items() if key not in ("architecture", "sources", "activation", "grid")}
    assert load_recorded_model(old, "cpu").sha256 == recorded["sha256"]
    assert "the bundle has no `architecture` of its model" in capsys.readouterr().err
    for change, reason in (
        ({"quick_gelu": True}, "activation QuickGELU of the image tower .* instead of GELU"),
        ({"vision_cfg": CONFIGS["Tiny-8"]["vision_cfg"] | {"head_width": 4}}, "norms, heads or pooling"),
    ):
        local_dir(folder, "Tiny-8", **change)
        with pytest.raises(ModelError, match=rf"is not the one that the bundle was made with: .*\({reason}"):
            load_recorded_model(recorded, "cpu")
    local_dir(folder, "Tiny-8", seed=1)
    with pytest.raises(ModelError, match=r"same name, another model$"):
        load_recorded_model(recorded, "cpu")
    local_dir(folder, "Tiny-8", vision_cfg=CONFIGS["Tiny-8"]["vision_cfg"] | {"image_size": 40})  # resizes positions
    with pytest.raises(ModelError, match=r"same name, another model \(grid 5 x 5 instead of 4 x 4, .*size 40 x 40 instead of 32"):
        load_recorded_model(recorded, "cpu")


def test_the_digest_is_of_what_computes_and_of_nothing_else() -> None:
    from open_clip.model import CLIP
    from open_clip.transformer import QuickGELU

    def digest(seed: int = 0, change: Callable[[Any], None] = lambda model: None, **settings: Any) -> str:
        torch.manual_seed(seed)
        model = CLIP(**copy.deepcopy(CONFIGS["Tiny-8"] | settings))
        change(model)
        return describe_architecture(model, {"size": 32, "mean": [0.5] * 3}).digest

    def image(**settings: Any) -> dict[str, Any]:
        return {"vision_cfg": CONFIGS["Tiny-8"]["vision_cfg"] | settings}

    def text(**settings: Any) -> dict[str, Any]:
        return {"text_cfg": CONFIGS["Tiny-8"]["text_cfg"] | settings}

    whole = digest()
    assert digest(seed=1) == whole and digest(change=lambda model: model.train()) == whole
    assert digest(change=lambda model: setattr(model.visual, "new_in_torch", 3)) == whole
    assert describe_architecture(CLIP(**copy.deepcopy(CONFIGS["Tiny-8"])), {"size": [32, 32], "mean": [0.5] * 3}).digest == whole
    others = [
        digest(quick_gelu=True),
        digest(change=lambda model: setattr(model.visual.transformer.resblocks[1].mlp, "gelu", QuickGELU())),
        digest(**image(norm_kwargs={"eps": 1e-6})),
        digest(**image(act_kwargs={"approximate": "tanh"})),
        digest(**image(head_width=4)),
        digest(**image(image_size=40)),
        digest(**image(pool_type="avg")),
        digest(**image(final_ln_after_pool=True)),
        digest(**text(heads=4)),
        digest(**text(no_causal_mask=True)),
        digest(**text(pool_type="last")),
        digest(**text(pool_type="eos")),
        digest(**text(norm_kwargs={"eps": 1e-6})),
    ]
    assert len({whole, *others}) == len(others) + 1


def test_embedded_models_keep_their_digest() -> None:
    """The digest is compared across versions: a change makes old bundles unreadable and needs a reason."""
    found = {name: load_model(name, device="cpu") for name in ("emoji-vit2", "emoji-rn2")}
    assert {name: model.computes.digest[:12] for name, model in found.items()} == {
        "emoji-vit2": "94d3d883533c",
        "emoji-rn2": "48e6a6a65fa1",
    }
    assert set(recorded_model(found["emoji-vit2"].identity)) == {"name", "pretrained", "sha256"}
    assert replace(found["emoji-rn2"], sha256="").identity["activation"] == {"image": "ReLU", "text": "GELU"}


@pytest.mark.parametrize("field", [{"grid": [8, "8"]}, {"activation": "GELU"}, {"architecture": 3}, {"sources": []}])
def test_damaged_fields_of_a_header_are_named(field: dict[str, Any]) -> None:
    model = {"name": "emoji-vit2", "sha256": "0" * 64} | field
    text = Header("effects", model, {}, {}).to_json()
    with pytest.raises(StreamError, match=f"b.safetensors: the bundle's header has model `{next(iter(field))}` "):
        Header.from_json(text, "b.safetensors")
