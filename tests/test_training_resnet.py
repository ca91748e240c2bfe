"""Training of a ResNet: its tower is open_clip's own, mirrored batches are consistent, and the trained model is complete."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from open_clip.model import CLIP

import training  # noqa: F401  (applies the torchvision remedy first)
from cliptools.models.load import load_model
from cliptools.text.emoji_concepts import concepts
from training import image as image_stage
from training import pair_lens
from training.batches import make_batch, with_mirror_images
from training.export import training_rows, write_model
from training.image import optimizer_for, recipe_at
from training.recipes import ARCHITECTURES, token_side
from training.resnet_objective import WEIGHTS, feature_map, resnet_objective, spread, token_readout

TEXT = ARCHITECTURES["emoji-vit"]["text_cfg"]
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
    drawn = make_batch(1, 0, 8, recipe_at(0.5), 96, 32, None, "cpu")
    both = with_mirror_images(drawn, 3)
    torch.testing.assert_close(both.image[8:], drawn.image.flip(-1))
    for b in range(8):
        for place, mirrored in zip(drawn.spot[b].tolist(), both.spot[8 + b].tolist(), strict=True):
            assert divmod(mirrored, 3) == (place // 3, 2 - place % 3)
    assert torch.equal(both.spot_label[8:], drawn.spot_label) and torch.equal(both.named[8:], drawn.named)


def test_losses_fall(model: CLIP) -> None:
    model.train()
    table = torch.nn.Parameter(torch.randn(len(concepts()), 192), requires_grad=False)
    optimizer, losses = optimizer_for(model, table), []
    batch = with_mirror_images(make_batch(1, 0, 12, recipe_at(0.0), 96, 32, None, "cpu"), 3)
    for _ in range(25):
        terms = resnet_objective(model.visual, table, torch.tensor(15.0), batch, WEIGHTS)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append({key: float(value.detach()) for key, value in terms.items()})
    assert all(losses[-1][term] < losses[0][term] for term in ("table", "dense", "loss"))


def test_spread_is_one_where_one_neuron_does_the_writing(model: CLIP) -> None:
    one = torch.zeros(4, 6, 128)
    one[..., 5] = 3.0
    assert float(spread(model.visual.attnpool, one).detach()) == pytest.approx(1, abs=0.01)
    assert float(spread(model.visual.attnpool, torch.rand(4, 6, 128)).detach()) > 2


def test_a_run_with_texts_taken_over_is_whole(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(image_stage, "top1", lambda *_: 0.0)  # 512 scenes more than this test needs
    run = ["emoji-rn", "--classes-of", "emoji-vit", "--minutes", "0.03", "--batch-size", "8", "--out", str(tmp_path / "run")]
    monkeypatch.setitem(ARCHITECTURES, "emoji-rn", TINY)
    done = CliRunner().invoke(image_stage.main, run)
    assert done.exit_code == 0, done.output
    write_model("tiny", torch.load(tmp_path / "run" / "model.pt", weights_only=True), tmp_path / "tiny")
    exported = open_clip.create_model(f"local-dir:{tmp_path / 'tiny'}", require_pretrained=True).eval()
    tokens = open_clip.SimpleTokenizer(context_length=32)(["a cat and an owl"])
    theirs = load_model("emoji-vit", device="cpu").clip.encode_text(tokens)
    torch.testing.assert_close(exported.encode_text(tokens), theirs, rtol=0, atol=1e-3)
    assert F.normalize(exported.encode_image(torch.randn(1, 3, 96, 96)), dim=-1).isfinite().all()


def test_what_a_token_stands_for() -> None:
    assert token_side(ARCHITECTURES["emoji-vit"]) == 8 and token_side(ARCHITECTURES["emoji-rn"]) == 32


def test_a_run_without_a_text_stage_has_rows_for_what_it_had(tmp_path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 10, "seconds": 120, "rate": 50.0}\n')
    (row,) = training_rows(tmp_path)
    assert row["steps"] == 10 and row["minutes"] == 2.0 and row["examples"] == 6000


def test_the_lens_scores_words_of_neurons() -> None:
    row = pair_lens.unit_row("emoji-rn", "neurons", 600, 11)
    assert row["how many"] == 256 and float(str(row["ratio"]).rstrip("×")) > 2
