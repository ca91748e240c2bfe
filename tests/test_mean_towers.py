"""Towers whose output is the mean of tokens: rows of attention in parts, their memory, and every command on such a model."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.advgen_input import inside
from helpers.other_towers import CUSTOM_SHAPES, mean_tower, pictures
from helpers.tiny_suite import Suite, run_case
from helpers.weights_files import TEXT, config, save
from torch import nn

from cliptools.analysis.margin_passes import VitTower
from cliptools.towers import tower as tower_module
from cliptools.towers.kinds import tower_of
from cliptools.towers.readout import MeanOfTokens
from cliptools.unit_effects.factored import UnitBlock
from cliptools.unit_effects.vit_direct import FirstOrder, Heads
from cliptools.unit_effects.vit_second_order import SecondOrder, trace

KINDS = ("clipa", "norm-first", "scale_attn")


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_rows_are_those_of_whole_attention(kind: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sums do not depend on the number of rows at a time; the attention matrix here is written out."""
    visual = mean_tower(kind, CUSTOM_SHAPES[number], number)
    attention, tokens = tower_of(visual).blocks[1].attention, slice(1, None)
    x = torch.randn(3, tower_of(visual).tokens, visual.conv1.out_channels, dtype=torch.float64)
    weight = torch.randn(3, 2, x.shape[1] - 1, dtype=torch.float64)
    q, k, _ = attention.qkv(x)
    A = torch.stack([torch.softmax(q[:, h] @ k[:, h].mT / q.shape[-1] ** 0.5, -1) for h in range(attention.heads)], 1)
    expected = torch.zeros(3, attention.heads, 2, x.shape[1], dtype=torch.float64)
    for j in range(1, x.shape[1]):
        expected += torch.einsum("bg,bhi->bhgi", weight[..., j - 1], A[:, :, j])
    for size in (1, 8 * x.shape[1] * 3 * attention.heads * 4, 1 << 30):  # a row, four rows, all rows
        monkeypatch.setattr(tower_module, "ROW_BYTES", size)
        torch.testing.assert_close(attention.row_sums(x, weight, tokens), expected, rtol=1e-12, atol=1e-12)


def test_no_matrix_of_all_tokens_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hooks keep of a layer, and the largest product of queries and keys, grow with the tokens and not with their square."""
    shape = CUSTOM_SHAPES[0] | {"image_size": (56, 63)}
    visual = mean_tower("clipa", shape)
    images, adapter, heads = pictures(visual), tower_of(visual), 3
    tokens = adapter.tokens
    hooks, rows_of = adapter.readout.row_hooks(adapter.blocks, range(1, adapter.depth))
    kept = next(cell.cell_contents for cell in rows_of.__closure__ or () if isinstance(cell.cell_contents, dict))
    monkeypatch.setattr(tower_module, "ROW_BYTES", 5 * 8 * 2 * heads * tokens)  # five rows
    sizes: list[int] = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, *a: sizes.append(x.numel()) or softmax(x, *a))
    with torch.inference_mode():
        handles = [module.register_forward_hook(hook) for module, hook in hooks]
        visual(images)
        for handle in handles:
            handle.remove()
        sizes.clear()
        reach = rows_of(torch.ones(2, tokens - 1, dtype=torch.float64))
    assert max(sizes) <= 5 * 2 * heads * tokens and {row.shape for row in reach.values()} == {(2, heads, tokens)}
    assert {part.x.shape for part in kept.values()} == {(2, tokens, 24)}


@pytest.mark.parametrize("kind", KINDS)
def test_effects_of_pictures_do_not_depend_on_their_batch(kind: str) -> None:
    visual = mean_tower(kind, CUSTOM_SHAPES[0])
    images, block = pictures(visual, 5), UnitBlock(1, torch.tensor([7, 0, 2]))
    for effect in (FirstOrder(visual), SecondOrder(visual), Heads(visual)):
        units = UnitBlock(1, torch.tensor([2, 0])) if isinstance(effect, Heads) else block
        (whole,), _ = effect.read(images, [units])
        parts = [next(iter(effect.read(image[None], [units])[0])) for image in images]
        torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_scalars_of_single_tokens_sum_to_those_of_the_picture(kind: str) -> None:
    visual = mean_tower(kind, CUSTOM_SHAPES[2], 1)
    images, block = pictures(visual, 2), UnitBlock(0, torch.tensor([3, 9]))
    passed = VitTower(tower_of(visual)).read(images)
    for image in range(2):
        sums = passed.token_scalars(image, block).sum(0)
        torch.testing.assert_close(sums, passed.scalars(block)[image], rtol=1e-10, atol=1e-12)
    traced = trace(visual, images, range(3))
    expected = sum(
        torch.einsum("bj,bjn,nd->bd", traced.beta, traced.p[layer][:, 1:], FirstOrder(visual).directions(units)[:, 0])
        for layer in range(3)
        for units in [UnitBlock(layer, torch.arange(traced.p[layer].shape[-1]))]
    )
    torch.testing.assert_close(passed.parts["mlps"], expected, rtol=1e-10, atol=1e-12)


CHARACTERS = [*string.ascii_lowercase, *string.digits, *"-,.'()"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
IMAGE = {"image_size": 24, "patch_size": 8, "width": 36, "layers": 4, "head_width": 12, "mlp_ratio": 1.5, "pool_type": "avg"}
FOLDERS: dict[str, dict[str, Any]] = {
    "clipa": IMAGE | {"no_ln_pre": True, "final_ln_after_pool": True},
    "norm-first": IMAGE | {"ls_init_value": 0.5, "block_type": "custom", "scale_attn_inner": True},
}
"""Image towers; the first has CLIPA's text tower, not causal, with BERT's tokens less the separator, read at the last one."""


def write_folder(folder: Path, kind: str) -> Path:
    """Write a folder in open_clip's form with random weights."""
    import open_clip

    folder.mkdir()
    text = TEXT | {"vocab_size": 49408, "layers": 2}
    if kind == "clipa":
        from transformers import BertTokenizer

        words = [*SPECIAL, *CHARACTERS, *(f"##{character}" for character in CHARACTERS)]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
        text |= {"hf_tokenizer_name": "bert-base-uncased", "tokenizer_kwargs": {"strip_sep_token": True}}
        text |= {"vocab_size": len(words), "pool_type": "last", "no_causal_mask": True}
    settings = config(FOLDERS[kind], text) | {"embed_dim": 20}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": {}}))
    torch.manual_seed(3)
    clip = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    for value in clip.visual.parameters():
        value.data = torch.randn_like(value) * 0.3 if value.ndim > 1 else 1 + 0.1 * torch.randn_like(value)
    save(clip.state_dict(), folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module", params=FOLDERS)
def mean_suite(request: pytest.FixtureRequest, tiny_resnet_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Every command on a model whose image tower has a mean of tokens."""
    folder = tmp_path_factory.mktemp("mean")
    (folder / "suite").mkdir()
    return Suite(folder / "suite", write_folder(folder / "model", request.param), tiny_resnet_dir)


OTHER = ("pairs", "labels", "texts", "scenes", "pooled", "raw", "judge model", "advgen images")
"""Cases without the ViT."""


def test_every_command_works_on_its_bundles(mean_suite: Suite) -> None:
    cases = {name: case for name, case in mean_suite.cases().items() if not any(word in name for word in OTHER)}
    commands = {"effects", "merge", "decompose", "judge", "spurious", "explain", "edit", "advgen", "view", "sheet", "gallery"}
    assert {case.command for case in cases.values()} == commands | {
        "top",
        "concepts",
        "shift",
        "ablate",
        "segment",
        "segment_eval",
    }
    for name, case in cases.items():
        ended = run_case(case)
        assert ended.returncode == 0, (name, ended.stderr.decode())
        assert ended.stdout or case.command in ("edit",), name


def test_heads_of_every_layer_are_read_at_every_token(mean_suite: Suite, tmp_path: Path) -> None:
    words = ("--sees", "cat", "--writes", "dog", "--head", 1, "--pool", mean_suite.pool, "--layers", 2, "--how", "zero")
    bundle = tmp_path / "heads.safetensors"
    effects = ("effects", mean_suite.images, "--model", mean_suite.vit, "--units", "heads", "--layers", "3", "--top-images", 3)
    assert inside(*effects, "-o", bundle).returncode == 0
    words = ("--sees", "cat", "--writes", "dog", "--head", 1, "--pool", mean_suite.pool, "--how", "zero", "--bundle", bundle)
    refused = inside("edit", mean_suite.images, *words, "-o", tmp_path / "edited.safetensors")
    (line,) = refused.stderr.decode().splitlines()
    assert refused.returncode == 2 and "heads of a tower that reads a mean of tokens are read at every token" in line
    for output in (("--approximate", "-o", tmp_path / "edited.safetensors"), ("--mask", tmp_path / "mask.safetensors")):
        ended = inside("edit", mean_suite.images, *words, *output)
        assert ended.returncode == 0, ended.stderr.decode()


def test_the_mean_leaves_out_tokens_before_the_patches() -> None:
    visual = mean_tower("clipa", CUSTOM_SHAPES[1])
    readout = tower_of(visual).readout
    assert readout == MeanOfTokens(slice(1, None), False)
    x, norm = torch.randn(2, 5, 40, dtype=torch.float64), nn.LayerNorm(40)
    mean = x[:, 1:].mean(1)
    sigma = (mean.var(-1, unbiased=False) + norm.eps).sqrt()
    torch.testing.assert_close(readout.beta(x, norm), (1 / (4 * sigma))[:, None].expand(2, 4), rtol=1e-12, atol=0)
