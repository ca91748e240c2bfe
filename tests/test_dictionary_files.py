"""Files of dictionaries in the layouts of ViT-Prisma, SAELens and saev, plain ones, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.dictionaries import encoded, pickled_prisma, plain, prisma, prisma_config, saev, saev_header, weights
from safetensors.torch import save_file

from cliptools.errors import CliptoolsError, ModelError, UsageError
from cliptools.models.dictionary_file import DictionaryFile, open_dictionary
from cliptools.models.load import LoadedModel
from cliptools.towers.dictionary import Dictionary

WIDTH, LATENTS = 36, 50
Y = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(5))


def tensors() -> dict[str, torch.Tensor]:
    return weights(WIDTH, LATENTS, dtype=torch.float32)


def codes(file: DictionaryFile) -> torch.Tensor:
    return Dictionary(file).activations(Y)


def test_prismas_folder_and_its_trainers_file_are_read(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 6}, "normalize_activations": "none"}
    folder = prisma(tmp_path / "hub", tensors(), hook_point_layer=9, **settings)
    single = pickled_prisma(tmp_path / "n_images_2600058.pt", tensors(), hook_point_layer=9, **settings)
    expected = torch.stack([encoded(tensors(), y, "topk", 6) for y in Y])
    for path in (folder, folder / "weights.pt", single):
        file = open_dictionary(str(path))
        shown = file.settings
        assert (shown.layer, shown.reads, shown.writes, shown.activation, shown.k) == (9, "residual", "residual", "topk", 6)
        assert shown.model == "open-clip:laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"
        torch.testing.assert_close(codes(file), expected, rtol=1e-5, atol=1e-4)
    assert open_dictionary(str(folder)).digest == open_dictionary(str(single)).digest


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, ("all", "layer_norm", "residual", "residual")),
        ({"cls_token_only": True}, ("class", "layer_norm", "residual", "residual")),
        ({"use_patches_only": True, "normalize_activations": None}, ("patches", "none", "residual", "residual")),
        ({"layer_subtype": "hook_mlp_out", "hook_point_layer": [1]}, ("all", "layer_norm", "mlp", "mlp")),
        ({"is_transcoder": True, "layer_subtype": "ln2.hook_normalized"}, ("all", "layer_norm", "mlp-input", "mlp")),
    ],
)
def test_prismas_settings(tmp_path: Path, changes: dict[str, Any], found: tuple[str, ...]) -> None:
    shown = open_dictionary(str(prisma(tmp_path / "hub", tensors(), **changes))).settings
    assert (shown.tokens, shown.scaling, shown.reads, shown.writes) == found


def test_saevs_files_are_read(tmp_path: Path) -> None:
    held = tensors()
    held["b_dec"] = 0 * held["b_dec"]  # saev does not take it away
    relu = open_dictionary(f"{saev(tmp_path / 'relu.pt', held, saev_header('Relu'))},layer=3")
    torch.testing.assert_close(codes(relu), torch.stack([encoded(held, y, "relu") for y in Y]), rtol=1e-5, atol=1e-4)
    header = saev_header("BatchTopK", top_k=6, momentum=0.1)
    buffer = held | {"activation.threshold": torch.tensor(2.5)}
    batch = open_dictionary(f"{saev(tmp_path / 'batch.pt', buffer, header)},layer=3")
    expected = torch.stack([encoded(held, y, "batchtopk", threshold=2.5) for y in Y])
    torch.testing.assert_close(codes(batch), expected, rtol=1e-5, atol=1e-4)
    top = codes(open_dictionary(f"{saev(tmp_path / 'top.pt', tensors(), saev_header('TopK', top_k=45))},layer=3"))
    assert ((top != 0).sum(1) == 45).all() and (top < 0).any()  # without a clip at 0
    with pytest.raises(ModelError, match=r"relu.pt: no layer in its configuration; add it, as sae:FILE,layer=5"):
        open_dictionary(str(tmp_path / "relu.pt"))


def test_saevs_files_before_its_schema_take_b_dec_away(tmp_path: Path) -> None:
    path = saev(tmp_path / "old.pt", tensors(), {"d_vit": WIDTH, "exp_factor": 2, "l1_coeff": 0.1})
    expected = torch.stack([encoded(tensors(), y, "relu") for y in Y])
    torch.testing.assert_close(codes(open_dictionary(f"{path},layer=1")), expected, rtol=1e-5, atol=1e-4)
    assert not open_dictionary(f"{path},layer=1,subtract=no").settings.subtract


def test_saelenss_files_are_read(tmp_path: Path) -> None:
    held = tensors() | {"threshold": torch.rand(LATENTS)}
    save_file(held, tmp_path / "sae_weights.safetensors")
    config = {"architecture": "jumprelu", "d_in": WIDTH, "d_sae": LATENTS, "apply_b_dec_to_input": False, "normalize_activations":
              "none", "metadata": {"hook_name": "blocks.2.hook_resid_pre", "model_name": "a"}}  # fmt: skip
    (tmp_path / "cfg.json").write_text(json.dumps(config))
    file = open_dictionary(str(tmp_path))
    assert (file.settings.layer, file.settings.activation, file.settings.subtract) == (1, "jumprelu", False)
    unshifted = tensors() | {"b_dec": torch.zeros(WIDTH)}
    expected = torch.stack([encoded(unshifted, y, "jumprelu", threshold=held["threshold"]) for y in Y])
    torch.testing.assert_close(codes(file), expected, rtol=1e-5, atol=1e-4)


def test_options_replace_the_configuration(tmp_path: Path) -> None:
    path = plain(tmp_path / "a,b.safetensors", tensors(), hook_name="blocks.2.hook_resid_post", activation="relu")
    shown = open_dictionary(f"{path},layer=1,activation=TopK,k=3,tokens=patches,threshold=0.5").settings
    assert (shown.layer, shown.activation, shown.k, shown.tokens, shown.threshold) == (1, "topk", 3, "patches", 0.5)
    shown = open_dictionary(f"{path},hook=blocks.4.hook_mlp_out").settings
    assert (shown.layer, shown.reads, shown.writes) == (4, "mlp", "mlp")
    assert open_dictionary(str(path)).digest != open_dictionary(f"{path},layer=1").digest


@pytest.mark.parametrize("beside", [True, False])
def test_a_configuration_within_a_pickle(tmp_path: Path, beside: bool) -> None:
    torch.save({"cfg": {"layer": 1, "activation": "relu"}, "state_dict": tensors()}, tmp_path / "sae.pt")
    if beside:
        (tmp_path / "cfg.json").write_text(json.dumps({"layer": 2, "activation": "relu"}))
    assert open_dictionary(str(tmp_path / "sae.pt")).settings.layer == (2 if beside else 1)


class Trap:
    """An object that would write a file if a pickle of it were run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


def test_no_pickle_is_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"cfg": Trap(trap), "state_dict": tensors()}, tmp_path / "a.pt")
    saev(tmp_path / "b.pt", {"x": Trap(trap)}, saev_header("Relu"))  # type: ignore[dict-item]
    for name in ("a.pt", "b.pt"):
        with pytest.raises(ModelError, match=rf"{name}: a pickle of objects that only code could rebuild"):
            open_dictionary(f"{tmp_path / name},layer=1")
    assert not trap.exists()


FAULTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "gated": ({}, {"architecture": "gated"}, "a gated autoencoder"),
    "head": ({}, {"hook_point_head_index": 3}, "one head's outputs"),
    "hook": (
        {},
        {"hook_name": "blocks.1.attn.hook_z"},
        "hook 'blocks.1.attn.hook_z', expected blocks.LAYER. with",
    ),
    "first": ({}, {"hook_name": "blocks.0.hook_resid_pre"}, "before the first layer"),
    "scaling": ({}, {"normalize_activations": "whiten"}, "normalize_activations 'whiten', expected one of none"),
    "activation": ({}, {"activation_fn_str": "tanh-relu"}, "activation 'tanh-relu', expected one of relu"),
    "no activation": ({}, {"activation_fn_str": None}, "no activation in its configuration"),
    "k": ({}, {"activation_fn_str": "topk"}, "TopK without k"),
    "large k": ({}, {"activation_fn_str": "topk", "k": 51}, "k 51 is more than its 50 latents"),
    "k text": ({}, {"activation_fn_str": "topk", "k": "many"}, "k 'many', expected a whole number from 1"),
    "threshold": ({}, {"activation_fn_str": "jumprelu"}, "jumprelu without a threshold"),
    "thresholds": ({"threshold": torch.ones(3)}, {"activation_fn_str": "jumprelu"}, "3 thresholds for 50 latents"),
    "missing": ({"W_dec": None, "b_dec": None}, {}, "it holds W_enc, b_enc; expected W_dec, b_dec as well"),
    "shapes": ({"W_dec": torch.ones(WIDTH, LATENTS)}, {}, r"W_dec \[36, 50\].*expected W_enc \[d, n\]"),
    "numbers": ({"b_enc": torch.full((LATENTS,), torch.nan)}, {}, "tensors with NaN"),
    "tokens": ({}, {"tokens": "some"}, "tokens 'some', expected one of all, class, patches"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_have_one_line(tmp_path: Path, fault: str) -> None:
    changed, settings, message = FAULTS[fault]
    held = {name: value for name, value in (tensors() | changed).items() if value is not None}
    config = {key: value for key, value in prisma_config(**settings).items() if value is not None}
    with pytest.raises(ModelError, match=rf"^sae.safetensors: .*{message}") as raised:
        open_dictionary(str(plain(tmp_path / "sae.safetensors", held, **config)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (",layer=x", "layer 'x', expected a whole number from 0"),
        (",k=0", "k '0', expected a whole number from 1"),
        (",threshold=low", "threshold 'low', expected a number"),
        (",subtract=maybe", "subtract 'maybe', expected yes or no"),
        (",hook=encoder.1", "hook 'encoder.1', expected blocks.LAYER."),
        (",activation=gelu", "activation 'gelu', expected one of relu"),
    ],
)
def test_options_have_their_values(tmp_path: Path, options: str, message: str) -> None:
    path = plain(tmp_path / "sae.safetensors", tensors(), layer=1, activation="relu")
    with pytest.raises(UsageError, match=f"--units sae:.*{message}"):
        open_dictionary(f"{path}{options}")


def test_broken_files_have_one_line(tmp_path: Path) -> None:
    whole = plain(tmp_path / "whole.safetensors", tensors(), layer=1, activation="relu").read_bytes()
    written = {"cut.safetensors": whole[:500], "page.pt": b"<!doctype html>", "empty.pt": b"", "json.pt": b'{"schema": 5}\nPK'}
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "none").mkdir()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "a.safetensors").write_bytes(plain(tmp_path / "bare.safetensors", tensors()).read_bytes())
    (tmp_path / "config" / "config.json").write_text("[1]")
    messages = {
        **dict.fromkeys(written, ""),
        "none": "0 files that may be a dictionary",
        "config": "is no JSON object",
        "no": "No such",
    }
    for name, message in messages.items():
        with pytest.raises(CliptoolsError, match=f"{Path(name).stem}.*{message}") as raised:
            open_dictionary(f"{tmp_path / name},layer=1")
        assert "\n" not in str(raised.value)
    with pytest.raises(UsageError, match="expected sae:FILE"):
        open_dictionary(",layer=1")


@pytest.mark.parametrize(
    ("name", "pretrained", "matches"),
    [("ViT-B-32", "datacomp_xl_s13b_b90k", True), ("ViT-B-32", "laion2b_s34b_b79k", False), ("ViT-B-32", None, None)],
)
def test_the_model_that_a_configuration_names_is_compared(
    tmp_path: Path, name: str, pretrained: str | None, matches: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    dictionary = Dictionary(open_dictionary(str(prisma(tmp_path / "hub", tensors()))))
    model = LoadedModel(name, pretrained, "0" * 64, "fp32", torch.nn.Module(), lambda _: Y, {}, torch.device("cpu"))
    if matches is False:
        with pytest.raises(ModelError, match="a dictionary of open-clip:laion/CLIP-ViT-B-32-DataComp"):
            dictionary.check_model(model)
        return
    dictionary.check_model(model)
    assert ("not checked" in capsys.readouterr().err) == (matches is None)
