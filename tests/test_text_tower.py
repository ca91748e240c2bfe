"""Text embeddings: the shortened tower equals the full tower; the cache saves work and never changes a result."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from helpers.text_tower import random_clip
from open_clip.model import CLIP, CustomTextCLIP
from torch.nn import functional as F

from cliptools.errors import ModelError, TextError
from cliptools.io import cache
from cliptools.models import text_encoder
from cliptools.models.load import LoadedModel, load_model
from cliptools.models.text_encoder import encode_pool, encode_texts, encode_tokens, tokenizer_of
from cliptools.text.vocabularies import Pool, load_pool

TEXTS = ("cat", "a very long description of an improbable vacuum cleaner", "two words", "x", "motorhome", "")
END = 49407


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return random_clip()


@pytest.mark.parametrize("kind", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("text", [{}, {"pool_type": "eos", "eos_id": END}, {"ls_init_value": 0.3, "proj_bias": True}])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_cut_tower_is_the_whole_tower(kind: type, text: dict, dtype: torch.dtype, tolerance: float) -> None:
    model = random_clip(kind, **text)
    model.clip.to(dtype)
    tokens = tokenizer_of(model)(list(TEXTS))
    cut = encode_tokens(model, tokens, batch_size=2)
    whole = model.clip.encode_text(tokens)
    assert cut.dtype == dtype
    torch.testing.assert_close(cut, whole, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(encode_tokens(model, tokens, cut=False), whole, atol=tolerance, rtol=tolerance)


def test_the_cut_tower_computes_fewer_positions(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    hook = loaded.clip.transformer.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:2])))
    encode_texts(loaded, TEXTS, batch_size=2)
    hook.remove()
    tokens = tokenizer_of(loaded)(list(TEXTS))
    lengths = sorted(int(row.argmax()) + 1 for row in tokens)
    assert seen == [(2, lengths[1]), (2, lengths[3]), (2, lengths[5])]
    assert loaded.clip.positional_embedding.shape == (24, 24)  # what was exchanged is back


@pytest.mark.parametrize("text", [{"no_causal_mask": True}, {"embed_cls": True}, {"pool_type": "last"}])
def test_towers_that_are_not_causal_or_pooled_at_the_end_are_not_cut(text: dict) -> None:
    model = random_clip(CustomTextCLIP, **text)
    tokens = tokenizer_of(model)(list(TEXTS))
    torch.testing.assert_close(
        encode_tokens(model, tokens, batch_size=len(TEXTS)), model.clip.encode_text(tokens), atol=1e-6, rtol=1e-6
    )


def test_rows_are_unit_norm_and_in_the_order_given(loaded: LoadedModel) -> None:
    together = encode_texts(loaded, TEXTS, batch_size=4)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(TEXTS)))
    alone = torch.cat([encode_texts(loaded, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_templates_are_the_mean_of_unit_vectors(loaded: LoadedModel) -> None:
    templates = ("a photo of {}", "{}", "art of a {}, {}")
    found = encode_texts(loaded, ("dog", "{brace}"), templates)
    for row, text in zip(found, ("dog", "{brace}"), strict=True):
        filled = open_clip.tokenize([t.replace("{}", text) for t in templates], context_length=24)
        mean = F.normalize(loaded.clip.encode_text(filled), dim=1).mean(dim=0)
        torch.testing.assert_close(row, F.normalize(mean, dim=0), atol=1e-5, rtol=1e-5)


def test_texts_that_the_model_cannot_read_to_their_end_are_told(
    loaded: LoadedModel, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    whole, longer = " ".join(["cat"] * 22), " ".join(["cat"] * 22 + ["dog"])  # 24 tokens, of which two mark start and end
    assert torch.equal(*(tokenizer_of(loaded)([text]) for text in (whole, longer)))
    encode_texts(loaded, [whole, "cat", "a description in forty-seven characters or so"])
    assert not capsys.readouterr().err
    encode_texts(loaded, ["cat", longer, longer + " boat"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 2 of 3 texts are longer than the 24 tokens that") and "'cat cat" in line
    encode_texts(loaded, ["cat", whole], ("{}", "a {}", "a photo of a {}"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: 1 of 2 texts are, in templates, longer")


def test_a_template_without_a_place_for_the_text(loaded: LoadedModel) -> None:
    with pytest.raises(TextError, match=r"expected \{\} where the text goes"):
        encode_texts(loaded, ("dog",), ("a photo",))


def test_low_precision_gives_float32_unit_vectors(loaded: LoadedModel) -> None:
    low = replace(random_clip(), precision="bf16")
    low.clip.to(torch.bfloat16)
    found = encode_texts(low, TEXTS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(len(TEXTS)))
    assert (found * encode_texts(loaded, TEXTS)).sum(dim=1).min() > 0.95


def test_a_real_architecture_by_name() -> None:
    model = load_model("ViT-B-32", "random", device="cpu")
    tokens = open_clip.get_tokenizer("ViT-B-32")(list(TEXTS))
    torch.testing.assert_close(encode_texts(model, TEXTS), model.clip.encode_text(tokens, normalize=True), atol=1e-5, rtol=1e-5)


def test_a_tokenizer_that_is_not_to_be_had(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded") as caught:
        tokenizer_of(replace(loaded, name=f"local-dir:{tmp_path}"))
    assert "\n" not in str(caught.value)


# The cache


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    path = tmp_path / "pool.txt"
    path.write_text("cat\ndog\nvacuum cleaner\n")
    return load_pool(str(path))


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLIPTOOLS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def refuse(*arguments: object, **options: object) -> None:
    raise AssertionError("the texts were encoded again")


def test_a_second_run_reads_what_the_first_kept(
    loaded: LoadedModel, pool: Pool, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode_pool(loaded, pool)
    assert len(files(kept)) == 1
    monkeypatch.setattr(text_encoder, "encode_texts", refuse)
    torch.testing.assert_close(encode_pool(loaded, pool), first, atol=0, rtol=0)
    with pytest.raises(AssertionError, match="encoded again"):
        encode_pool(loaded, pool, use_cache=False)


def test_a_tower_that_looks_ahead_has_its_own_entry(loaded: LoadedModel) -> None:
    """The mask is neither a weight nor a module, so neither the hash nor the names of the layers reveal it."""
    both = random_clip()
    both.clip.attn_mask = None
    assert text_encoder.text_tower_digest(both) != text_encoder.text_tower_digest(loaded)


def test_whatever_changes_the_numbers_has_its_own_entry(loaded: LoadedModel, pool: Pool, kept: Path) -> None:
    other_pool = replace(pool, texts=("cow",), digest="other")
    quick = random_clip()
    for block in quick.clip.transformer.resblocks:
        block.mlp.gelu = open_clip.transformer.QuickGELU()  # same weights, another function
    fewer_heads = random_clip()
    for block in fewer_heads.clip.transformer.resblocks:
        block.attn.num_heads, block.attn.head_dim = 2, 12
    encode_pool(loaded, pool)
    encode_pool(loaded, replace(pool, name="the same texts by another name"))
    assert len(files(kept)) == 1
    for model in (replace(loaded, sha256="1" * 64), replace(loaded, precision="bf16"), quick, fewer_heads):
        encode_pool(model, pool)
    encode_pool(loaded, other_pool)
    encode_pool(loaded, pool, ("a {}",))
    encode_pool(loaded, pool, ("a {}", "the {}"))
    assert len(files(kept)) == 8


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text", "other"])
def test_a_damaged_entry_is_made_anew(loaded: LoadedModel, pool: Pool, kept: Path, damage: str) -> None:
    first = encode_pool(loaded, pool)
    (path,) = files(kept)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    encode_pool(loaded, replace(pool, digest="other"))
    (other,) = set(files(kept)) - {path}
    damaged = {"empty": b"", "cut": whole[:-9], "flipped": bytes(flipped), "text": b"{}" * 40, "other": other.read_bytes()}
    path.write_bytes(damaged[damage])
    torch.testing.assert_close(encode_pool(loaded, pool), first, atol=0, rtol=0)
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_said_once(
    loaded: LoadedModel, pool: Pool, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept.write_text("a file where the folder should be")
    first = encode_pool(loaded, pool)
    torch.testing.assert_close(encode_pool(loaded, pool), first, atol=0, rtol=0)
    err = capsys.readouterr().err
    assert err.count("warning") == 1
    assert "results cannot be kept in the cache" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_still_serves(loaded: LoadedModel, pool: Pool, kept: Path) -> None:
    first = encode_pool(loaded, pool)
    for folder in (kept, kept / "texts"):
        folder.chmod(0o555)
    torch.testing.assert_close(encode_pool(loaded, pool), first, atol=0, rtol=0)
    encode_pool(loaded, pool, ("a {}",))
    for folder in (kept, kept / "texts"):
        folder.chmod(0o755)


def test_no_half_written_file_is_left(kept: Path) -> None:
    def fail() -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.cached("texts", "k", (-1,), fail)
    assert files(kept) == []
    value = cache.cached("texts", "k", (-1,), lambda: np.arange(3, dtype=np.float32))
    assert [path.name for path in files(kept)] == ["k.safetensors"]
    assert value.tolist() == [0, 1, 2]


def test_the_users_own_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CLIPTOOLS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in cache.cache_dir().parents
    assert cache.cache_dir().name == "cliptools"
