"""Sparse training: how much neurons write, the penalties, and the transcoders that training starts from, by slow definitions."""

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

import training  # noqa: F401  (applies the torchvision remedy first)
from cliptools.models.clip_parts import CLIP
from cliptools.text.attributes import attribute_groups, attributes
from cliptools.text.emoji_concepts import concepts
from training import dictionary
from training.dictionary import Examples, Transcoder, learn, logit_map, report
from training.objective import attribute_loss, written_strengths
from training.recipes import ARCHITECTURES
from training.resnet_objective import strongest, written_strength
from training.sparsity import MEMORY, Sparsity, beyond, writing
from training.vision import path_output, path_values, reader_matrix

TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 16, "mlp_ratio": 0.75},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 12, "heads": 2, "layers": 1},
}


def tower() -> CLIP:
    torch.manual_seed(3)
    model = CLIP(**TINY)
    for name, weight in model.visual.named_parameters():
        if weight.ndim == 1:
            nn.init.normal_(weight, mean=float("ln" in name and name.endswith("weight")), std=0.3)
    return model.double()


def test_writing_is_the_distance_from_the_median_times_the_strength() -> None:
    p, s = torch.randn(51, 7, dtype=torch.float64), torch.rand(7, dtype=torch.float64)
    expected = np.abs(p.numpy() - np.median(p.numpy(), axis=0)) * s.numpy()
    np.testing.assert_allclose(writing(p, s).numpy(), expected, atol=1e-12)


def test_a_constant_writes_nothing_and_a_rare_event_does() -> None:
    p = torch.zeros(40, 3)
    p[:, 0] = 100.0
    p[:2, 1] = 1.0
    c = writing(p, torch.ones(3))
    assert (c[:, 0] == 0).all() and (c[2:] == 0).all() and (c[:2, 1] == 1).all()


@pytest.mark.parametrize("most", [1, 3, 9])
def test_the_share_beyond_the_strongest(most: int) -> None:
    c = torch.rand(20, 7, dtype=torch.float64)
    rows = [1 - sum(sorted(row, reverse=True)[:most]) / (sum(row) + 1e-6) for row in c.tolist()]
    assert float(beyond(c, most)) == pytest.approx(sum(rows) / len(rows), abs=1e-9)


def test_crowding_is_the_entropy_that_the_usage_lacks_and_its_gradient_that_of_the_new_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Training rounds to float32 beneath autocast; in exact arithmetic that must not happen.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    sparsity, s = Sparsity(2), torch.ones(5, dtype=torch.float64)
    first = torch.rand(30, 5, dtype=torch.float64)
    sparsity([first[None]], [s])
    earlier = sparsity.usage[0].clone()
    p = torch.rand(30, 5, dtype=torch.float64, requires_grad=True)
    _, crowding = sparsity([p[None]], [s])

    def lacking(q: torch.Tensor) -> torch.Tensor:
        c = writing(q, s)
        u = MEMORY * earlier + (1 - MEMORY) * (c / (c.sum(-1, keepdim=True) + 1e-6)).mean(0)
        u = u / u.sum()
        return 1 + (u * (u + 1e-9).log()).sum() / math.log(5)

    assert float(crowding.detach()) == pytest.approx(float(lacking(p).detach()), abs=1e-9)
    (ours,) = torch.autograd.grad(crowding, p)
    (slow,) = torch.autograd.grad(lacking(p) / (1 - MEMORY), p)
    torch.testing.assert_close(ours, slow, rtol=0, atol=1e-9)


def test_usage_of_one_neuron_is_crowded_and_equal_usage_is_not() -> None:
    alone, equal = torch.zeros(1, 60, 6), torch.zeros(1, 60, 6)
    alone[0, ::3, 0] = 1.0
    for token in range(60):
        if token % 3 == 0:
            equal[0, token, token // 3 % 6] = 1.0
    ones = torch.ones(6)
    assert float(Sparsity(1)([alone], [ones])[1]) > 0.99
    assert float(Sparsity(1)([equal], [ones])[1]) < 0.02


def test_strengths_are_how_far_a_neuron_moves_logits_apart() -> None:
    """By the definition: the neuron's column through each reader, one concept at a time."""
    visual, E = tower().visual, F.normalize(torch.randn(9, 12, dtype=torch.float64), dim=-1)
    blocks = list(visual.transformer.resblocks)
    for i, strengths in enumerate(written_strengths(visual, E.float())):
        layer = len(blocks) - 3 + i
        for n in range(0, 24, 5):
            w = blocks[layer].mlp.c_proj.weight[:, n]
            squares = []
            for block in blocks[layer + 1 :]:
                z = reader_matrix(visual, block) @ w
                logits = torch.stack([e @ z for e in E])
                squares.append(float((logits - logits.mean()).square().mean().detach()))
            assert float(strengths[n].detach()) == pytest.approx(math.sqrt(sum(squares) / len(squares)), rel=1e-4)


def test_a_reader_is_the_path_without_attention_and_divisor() -> None:
    from training.vision import Reader

    visual = tower().visual
    block = visual.transformer.resblocks[-1]
    m = torch.randn(2, 5, 32)
    visual.float()
    reader = Reader(block, m, torch.ones(2, 5, 1), torch.zeros(2, 2, 5))
    through = path_output(visual, reader, path_values(reader, m))
    torch.testing.assert_close(through, m @ reader_matrix(visual, block).T, rtol=1e-4, atol=1e-5)


def test_the_strengths_of_channels() -> None:
    torch.manual_seed(0)
    pool = CLIP(
        **{**TINY, "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32}}
    ).visual.attnpool
    E = torch.randn(6, 12)
    w = (pool.c_proj.weight @ pool.v_proj.weight).detach()
    logits = E @ w  # (concept, neuron)
    torch.testing.assert_close(written_strength(pool, E).detach(), logits.std(0, unbiased=False), rtol=1e-4, atol=1e-6)


def test_the_strongest_channels_of_each_token_stay() -> None:
    z, s = torch.rand(2, 8, 3, 3), torch.rand(8)
    kept = strongest(z, s, 3)
    for b in range(2):
        for v in range(3):
            for u in range(3):
                best = sorted(range(8), key=lambda n: -float(z[b, n, v, u] * s[n]))[:3]
                assert {n for n in range(8) if kept[b, n, v, u] != 0} == set(best)
                assert all(kept[b, n, v, u] == z[b, n, v, u] for n in best)


def test_attribute_loss_group_by_group() -> None:
    torch.manual_seed(1)
    z, words = F.normalize(torch.randn(4, 12), dim=-1), F.normalize(torch.randn(len(attributes()), 12), dim=-1)
    true = (torch.rand(4, len(attributes())) < 0.2).float()
    true[0] = 0
    losses, start = [], 0
    for group in attribute_groups():
        stop, rows = start + len(group.words), []
        for b in range(4):
            have = [n for n in range(start, stop) if true[b, n]]
            if have:
                log_p = (7.0 * z[b] @ words[start:stop].T).log_softmax(0)
                rows.append(-sum(float(log_p[n - start]) for n in have) / len(have))
        losses.append(sum(rows) / max(1, len(rows)))
        start = stop
    expected = sum(losses) / len(losses)
    assert float(attribute_loss(z, words, torch.tensor(7.0), true)) == pytest.approx(expected, rel=1e-5)


# --- transcoders


def sparse_examples(count: int = 4000) -> tuple[Examples, Transcoder]:
    """Return tokens on which two of twelve sources write, and an MLP to start from."""
    torch.manual_seed(5)
    sources, writes = F.normalize(torch.randn(12, 16), dim=-1), F.normalize(torch.randn(12, 16), dim=-1)
    active = torch.zeros(count, 12)
    for row in active:
        row[torch.randperm(12)[:2]] = 1 + torch.rand(2)
    return Examples(3 * active @ sources, active @ writes), Transcoder(16, 24)


def test_a_transcoder_learns_what_few_sources_write() -> None:
    examples, mlp = sparse_examples()
    _, before = learn(examples, mlp, torch.eye(16), 2, 2)
    coder, after = learn(examples, mlp, torch.eye(16), 2, 500)
    assert after["strongest"] < 0.35 and before["strongest"] > 0.6
    assert after["plain"] < 0.5
    assert after["used"] > 0.4 and after["most used"] < 0.9
    assert after == report(coder, examples, torch.eye(16), 2)


def test_the_strongest_neurons_of_a_token_are_kept() -> None:
    torch.manual_seed(2)
    coder, p = Transcoder(6, 9), torch.randn(11, 9)
    kept, size = coder.strongest(p, 4), coder.c_proj.weight.norm(dim=0)
    for row, left in zip(p, kept, strict=True):
        best = (row.abs() * size).topk(4).indices
        assert set(left.nonzero()[:, 0].tolist()) == set(best.tolist()) and torch.equal(left[best], row[best])


def test_the_map_to_logits_measures_what_moves_them_apart() -> None:
    visual = tower().visual
    table = torch.randn(len(concepts()) + len(attributes()), 12, dtype=torch.float64)
    E = F.normalize(table, dim=-1)[: len(concepts())]
    m = torch.randn(5, 32, dtype=torch.float64)
    total = torch.zeros(5, dtype=torch.float64)
    later = list(visual.transformer.resblocks)[2:]
    for block in later:
        logits = m @ reader_matrix(visual, block).T @ E.T  # (5, concept)
        total += (logits - logits.mean(1, keepdim=True)).square().mean(1) / len(later)
    ours = (m @ logit_map(visual, table, 1).T).square().sum(1)
    torch.testing.assert_close(ours.detach(), total.detach(), rtol=0, atol=1e-9)


def test_the_command_replaces_the_late_mlps_only(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(dictionary, "POOL", 128)
    torch.manual_seed(0)
    model = CLIP(**TINY)

    def tiny(name: str, device: str) -> dictionary.Trained:
        rows = torch.randn(len(concepts()) + len(attributes()), 12)
        return dictionary.Trained(model=CLIP(**TINY), table=nn.Parameter(rows), log_scale=nn.Parameter(torch.tensor(2.0)))

    monkeypatch.setattr(dictionary, "new_model", tiny)
    start = tmp_path / "image.pt"
    table = torch.randn(len(concepts()) + len(attributes()), 12)
    torch.save({"model": model.state_dict(), "table": table, "log_scale": torch.tensor(2.0)}, start)
    done = CliRunner().invoke(dictionary.main, [str(start), str(tmp_path / "sparse.pt"), "--name", "tiny", "--steps", "4"])
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [line["layer"] for line in lines] == [1, 2]
    after, before = torch.load(tmp_path / "sparse.pt", weights_only=True)["model"], model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {
        f"visual.transformer.resblocks.{layer}.mlp.{part}.{kind}"
        for layer in (1, 2) for part in ("c_fc", "c_proj") for kind in ("weight", "bias")
    }  # fmt: skip
