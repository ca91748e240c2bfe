"""Training of a ResNet: its tower is open_clip's own, mirrored batches are consistent, and the trained model is complete."""

from dataclasses import replace

import pytest
import torch
from open_clip.model import CLIP

import training  # noqa: F401  (applies the torchvision remedy first)
from cliptools.emoji.scenes import Recipe
from cliptools.text.attributes import PLACES, attribute_index, attributes
from cliptools.text.emoji_concepts import concepts
from training import pair_lens
from training.batches import make_batch, with_mirror_images
from training.export import training_rows
from training.image import Run, Trained, optimizer_for, training_recipe
from training.recipes import ARCHITECTURES, token_side
from training.resnet_objective import WEIGHTS, feature_map, resnet_objective, token_readout
from training.sparsity import Sparsity

TEXT = ARCHITECTURES["emoji-vit2"]["text_cfg"]
TINY = {
    "embed_dim": 192,
    "vision_cfg": {"image_size": 96, "layers": [1, 1, 1, 1], "width": 4, "head_width": 32},
    "text_cfg": TEXT,
}


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    model = CLIP(**TINY)
    for name, weight in model.visual.named_parameters():  # as trained: no gain that is zero, no bias either
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=float("bn" in name and name.endswith("weight")), std=0.3)
    return model.eval()


def test_training_runs_the_tower_that_open_clip_runs(model: CLIP) -> None:
    visual, image = model.double().visual, torch.randn(2, 3, 96, 96, dtype=torch.float64)
    torch.testing.assert_close(visual.attnpool(feature_map(visual, image)), visual(image), rtol=0, atol=1e-9)


def test_a_pool_that_attends_to_one_token_reads_that_token_out(model: CLIP) -> None:
    """If all tokens are equal, the pooled output is the readout of one token for any attention."""
    pool, token = model.double().visual.attnpool, torch.randn(1, 128, 1, 1, dtype=torch.float64)
    pool.positional_embedding.data[:] = pool.positional_embedding.data[0]
    x = token[:, :, 0, 0] + pool.positional_embedding[0]
    torch.testing.assert_close(token_readout(pool, x[:, None])[:, 0], pool(token.expand(1, 128, 3, 3)), rtol=0, atol=1e-9)


def test_mirror_images_show_their_spots_mirrored() -> None:
    drawn = make_batch(1, 0, 8, training_recipe(), 96, 32, None, "cpu")
    both = with_mirror_images(drawn, 3)
    torch.testing.assert_close(both.image[8:], drawn.image.flip(-1))
    for b in range(8):
        for place, mirrored in zip(drawn.spot[b].tolist(), both.spot[8 + b].tolist(), strict=True):
            assert divmod(mirrored, 3) == (place // 3, 2 - place % 3)
    left, right = (attribute_index()[word] for word in PLACES[:2])
    assert torch.equal(both.true[8:, left], drawn.true[:, right]) and torch.equal(both.true[:8], drawn.true)
    assert torch.equal(both.spot_label[8:], drawn.spot_label) and torch.equal(both.named[8:], drawn.named)


def test_losses_fall(model: CLIP) -> None:
    model.train()
    table = torch.nn.Parameter(torch.randn(len(concepts()) + len(attributes()), 192))
    trained = Trained(model=model, table=table, log_scale=torch.nn.Parameter(torch.tensor(2.7)))
    optimizer, losses, sparsity = optimizer_for(trained), [], Sparsity(3)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    batch = with_mirror_images(make_batch(1, 0, 12, Recipe(difficulty=0.0), 96, 32, None, "cpu"), 3)
    for _ in range(25):
        terms = resnet_objective(model.visual, table, torch.tensor(15.0), batch, WEIGHTS, sparsity, 40)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append({key: float(value.detach()) for key, value in terms.items()})
    assert all(losses[-1][term] < losses[0][term] for term in ("table", "dense", "attributes", "loss"))


def test_fewer_and_fewer_channels_are_read_until_all_are_again() -> None:
    run = Run(name="emoji-rn2", scenes=1000, batch_size=8, rate=1e-3, sparse=3.0, most=5, device="cpu")
    kept = [run.kept_channels(first) for first in (0, 200, 400, 849, 851)]
    assert kept[0] == 64 and 5 < kept[1] < 64 and kept[2:] == [5, 5, None]
    assert replace(run, sparse=0.0).kept_channels(0) is None


def test_what_a_token_stands_for() -> None:
    assert token_side(ARCHITECTURES["emoji-vit2"]) == 8 and token_side(ARCHITECTURES["emoji-rn2"]) == 32


def test_a_run_without_a_text_stage_has_rows_for_what_it_had(tmp_path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 10, "seconds": 120, "scenes": 6000}\n')
    (row,) = training_rows(tmp_path)
    assert row["steps"] == 10 and row["minutes"] == 2.0 and row["examples"] == 6000


def test_the_lens_scores_words_of_neurons() -> None:
    row = pair_lens.unit_row("emoji-rn2", "neurons", 600, 11)
    assert row["how many"] == 256 and float(str(row["ratio"]).rstrip("×")) > 2
