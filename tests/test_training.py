"""Training: its tower equals open_clip's, its losses fall, and its measures are correct."""

from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

import training  # noqa: F401  (applies the torchvision remedy first)
from cliptools.emoji.render import render
from cliptools.emoji.scenes import Recipe, draw_scene, fact_scene
from cliptools.emoji.words import concepts_in
from cliptools.emoji.writing import writable
from cliptools.models.load import load_model
from cliptools.text.attributes import attributes
from cliptools.text.emoji_concepts import concept_index, concepts, facts
from training import image as image_stage
from training.batches import make_batch, slot_labels
from training.export import write_model
from training.image import Run, Trained, optimizer_for, training_recipe
from training.joint import CompactVocabulary, align, class_texts, text_loss, train_both
from training.measures import embed_classes, words_alone
from training.objective import Weights, objective
from training.recipes import ARCHITECTURES
from training.sparsity import Sparsity
from training.texts import cut, draw_text, encode_tokens, text_batch
from training.vision import forward, second_order_sum

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 4, "head_width": 16, "mlp_ratio": 0.5},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TOKENIZER = open_clip.SimpleTokenizer(context_length=32)


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    model = CLIP(**TINY)
    for name, weight in model.named_parameters():  # biases and gains that are not zero and one, so that a slip with them shows
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=float("ln" in name and name.endswith("weight")), std=0.3)
    return model.eval()


def test_training_runs_the_tower_that_open_clip_runs(model: CLIP) -> None:
    model = model.double()
    image = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(forward(model.visual, image).embedding, model.visual(image), rtol=0, atol=1e-9)


def test_dropping_no_token_by_name_drops_none(model: CLIP) -> None:
    image = torch.randn(2, 3, 32, 32)
    everything = torch.arange(16).expand(2, 16)
    torch.testing.assert_close(forward(model.visual, image, everything).embedding, model.visual(image), rtol=0, atol=1e-5)


def test_the_tokens_of_a_word_are_kept_and_name_it() -> None:
    recipe = Recipe(written=1.0)
    scenes = [draw_scene(1, i, recipe) for i in range(24)]
    batch = make_batch(1, 0, 24, recipe, 64, 8, 30, "cpu")
    cover = F.avg_pool2d(render(scenes, 64).word[:, None], 8).flatten(1)  # (b, patch)
    assert batch.kept is not None
    for b, scene in enumerate(scenes):
        assert scene.writing is not None
        kept = set(batch.kept[b].tolist())
        assert {n for n in range(64) if cover[b, n] > 0.99} <= kept  # the whole word is there
        wholly = [label for place, label in zip(batch.spot[b].tolist(), batch.spot_label[b].tolist(), strict=True)
                  if cover[b, batch.kept[b, place]] > 0.99]  # fmt: skip
        assert set(wholly) <= {scene.writing.concept}
    assert any(scene.writing.concept in labels for scene, labels in zip(scenes, batch.spot_label.tolist(), strict=True))


def test_a_word_that_the_caption_leaves_out_is_labelled_by_the_caption() -> None:
    fact = next(fact for fact in facts() if fact.kind == "word")
    scene = fact_scene(np.random.default_rng(0), fact, seen=0.0)
    assert slot_labels([scene], 2).tolist() == [[fact.named, -100, fact.named]]
    assert slot_labels([replace(scene, writing=None)], 2)[0, -1] == -100


def test_a_word_alone_shows_nothing_else() -> None:
    scenes = words_alone(2)
    assert [scene.writing.concept for scene in scenes if scene.writing] == [*writable()] * 2
    assert all(not scene.sprites and scene.named == (scene.writing.concept,) for scene in scenes if scene.writing)
    canvas = render(scenes, 64)
    assert float(canvas.visible.abs().max()) == 0 and float(canvas.word.flatten(1).sum(1).min()) > 100


def hooked(model: CLIP, image: Tensor) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Return each block's input, each MLP's activations, and the input of ln_post, from open_clip's own forward pass."""
    inputs: list[Tensor] = []
    neurons: list[Tensor] = []
    last: list[Tensor] = []
    blocks = model.visual.transformer.resblocks
    hooks = [block.ln_1.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for block in blocks]
    hooks += [block.mlp.gelu.register_forward_hook(lambda _, __, out: neurons.append(out)) for block in blocks]
    hooks.append(model.visual.ln_post.register_forward_pre_hook(lambda _, args: last.append(args[0])))
    model.visual(image)
    for hook in hooks:
        hook.remove()
    return inputs, neurons, last[0]


def gain(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    """Return the factor of a LayerNorm with frozen statistics, without centring."""
    return norm.weight / (x.var(unbiased=False) + norm.eps).sqrt()


def brute_force_sum(model: CLIP, image: Tensor) -> Tensor:
    """Return second-order effects of layers L-3 and L-2, one path at a time; the MLP's bias counts as an additional neuron."""
    inputs, neurons, last = hooked(model, image)
    blocks = list(model.visual.transformer.resblocks)
    width, side = 32, 16
    total = torch.zeros(len(image), TINY["embed_dim"], dtype=torch.float64)
    for b in range(len(image)):
        post = gain(last[b, 0], model.visual.ln_post)
        for layer in (len(blocks) - 3, len(blocks) - 2):
            writes = [*blocks[layer].mlp.c_proj.weight.T, blocks[layer].mlp.c_proj.bias]
            for later in range(layer + 1, len(blocks)):
                attn, x = blocks[later].attn, inputs[later][b]  # x: (token, width)
                normed = blocks[later].ln_1(x)
                q, k = (
                    F.linear(normed, w, c)
                    for w, c in zip(attn.in_proj_weight.split(width)[:2], attn.in_proj_bias.split(width)[:2], strict=True)
                )
                for head in range(width // side):
                    of = slice(head * side, (head + 1) * side)
                    row = (q[0, of] @ k[:, of].T / side**0.5).softmax(0)
                    both = attn.out_proj.weight[:, of] @ attn.in_proj_weight[2 * width :][of]  # (width, width)
                    for token in range(len(x)):
                        frozen = gain(x[token], blocks[later].ln_1)
                        for n, write in enumerate(writes):
                            p = neurons[layer][b, token, n] if n < len(writes) - 1 else 1.0
                            total[b] += p * row[token] * (post * (both @ (frozen * write))) @ model.visual.proj
    return total


def test_second_order_sum_is_the_sum_of_its_paths(model: CLIP, monkeypatch: pytest.MonkeyPatch) -> None:
    # Training rounds to float32 beneath autocast; in exact arithmetic that must not happen.
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    model = model.double().requires_grad_(False)
    image = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    ours = second_order_sum(model.visual, forward(model.visual, image))
    torch.testing.assert_close(ours, brute_force_sum(model, image), rtol=0, atol=1e-9)


def test_losses_fall_and_the_export_answers_alike(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, table = CLIP(**TINY), torch.nn.Parameter(torch.randn(len(concepts()) + len(attributes()), TINY["embed_dim"]))
    trained = Trained(model=model, table=table, log_scale=torch.nn.Parameter(torch.tensor(2.7)))
    optimizer, losses = optimizer_for(trained), []
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    batch, sparsity = make_batch(1, 0, 32, Recipe(difficulty=0.0), 32, 8, 10, "cpu"), Sparsity(2)
    for _ in range(25):
        terms = objective(model.visual, table, torch.tensor(15.0), batch, Weights(), sparsity)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append({key: float(value.detach()) for key, value in terms.items()})
    assert all(losses[-1][term] < losses[0][term] for term in ("table", "path", "dense", "path_dense", "attributes", "loss"))

    before = model.token_embedding.weight.clone()
    vocabulary = CompactVocabulary(model, TOKENIZER, texts=2000)
    target = F.normalize(table.detach(), dim=-1)
    batch_of_texts = text_batch(np.random.default_rng(5), 128, vocabulary, "cpu")

    def loss() -> float:
        return float(text_loss(encode_tokens(model, batch_of_texts.tokens), target, batch_of_texts.named).detach())

    untrained = loss()
    align(model, target, vocabulary, 40)
    assert loss() < untrained - 0.2
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    run = Run(name="tiny", scenes=32, batch_size=16, rate=1e-4, sparse=1.0, most=2, device="cpu")
    monkeypatch.setattr(image_stage, "KEPT", 10)
    train_both(model, vocabulary, run)
    vocabulary.restore(model)
    changed = (model.token_embedding.weight != before).any(1)
    assert set(changed.nonzero()[:, 0].tolist()) <= set(vocabulary.used.tolist()) and int(changed.sum()) > 100

    write_model("tiny", model.state_dict(), tmp_path)
    exported = open_clip.create_model(f"local-dir:{tmp_path}", require_pretrained=True).eval()
    tokens = TOKENIZER(["a cat and an owl"])
    assert F.cosine_similarity(exported.encode_image(batch.image), model.eval().encode_image(batch.image)).min() > 0.999
    assert F.cosine_similarity(exported.encode_text(tokens), model.encode_text(tokens)).min() > 0.999


def test_a_text_cut_short_is_embedded_as_the_whole(model: CLIP) -> None:
    model = model.double()
    tokens = TOKENIZER(["owl", "a picture of a cat, a dog and a violin", "!"])  # "!" has the number that also pads
    assert cut(tokens).shape[1] < tokens.shape[1]
    torch.testing.assert_close(encode_tokens(model, cut(tokens)), model.encode_text(tokens), rtol=0, atol=1e-9)


def test_drawn_texts_name_their_concepts_and_attributes() -> None:
    rng, kinds = np.random.default_rng(3), set()
    for _ in range(400):
        text, named, mentioned = draw_text(rng)
        assert set(named) <= set(concepts_in(text)), text
        for word in (attributes()[number] for number in mentioned):
            assert word in text or (word == "written word" and "the word " in text)
        kinds.add((bool(named), bool(mentioned)))
    assert kinds == {(True, False), (False, True), (True, True)}


def test_batches_of_texts_weigh_attributes_less_than_concepts() -> None:
    batch = text_batch(np.random.default_rng(1), 64, TOKENIZER, "cpu")
    torch.testing.assert_close(batch.named.sum(1), torch.ones(64))
    of_concepts = batch.named[:, : len(concepts())].sum(1)
    assert {round(float(share), 4) for share in of_concepts} == {0.0, 1.0, round(1 / 1.5, 4)}


def test_class_texts_name_each_concept_and_attribute() -> None:
    texts = class_texts(np.random.default_rng(1))
    assert len(texts) == len(concepts()) + len(attributes())
    assert all(i in concepts_in(text) for i, text in enumerate(texts[: len(concepts())]))
    assert all(word in text for word, text in zip(attributes(), texts[len(concepts()) :], strict=True))


def test_a_run_that_was_ended_goes_on_where_it_saved(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both parts see the scenes that one run sees, in the same order."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
    monkeypatch.setattr(image_stage, "KEPT", 10)
    drawn: list[int] = []
    real = image_stage.terms_at
    monkeypatch.setattr(image_stage, "terms_at", lambda *arguments: (drawn.append(arguments[4]), real(*arguments))[1])
    run = Run(name="tiny", scenes=48, batch_size=8, rate=1e-3, sparse=1.0, most=2, device="cpu")
    rows = len(concepts()) + len(attributes())

    def fresh() -> Trained:
        torch.manual_seed(0)
        table, scale = torch.nn.Parameter(torch.randn(rows, 16)), torch.nn.Parameter(torch.tensor(2.7))
        return Trained(model=CLIP(**TINY), table=table, log_scale=scale)

    first = fresh()
    state = first.state() | {"optimizer": optimizer_for(first).state_dict(), "drawn": 24, "seconds": 1.0}
    torch.save(state, tmp_path / "state.pt")
    image_stage.train(fresh(), run, tmp_path)
    assert drawn == [24, 32, 40]
    image_stage.train(fresh(), run, tmp_path / "other")
    assert drawn[3:] == [0, 8, 16, 24, 32, 40]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_new_model_sees_as_the_other_model_within_the_space_of_the_concepts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES[name], "embed_dim", 96)
    trained, old = image_stage.new_model(name, "cpu", name), load_model(name, device="cpu").clip
    side = ARCHITECTURES[name]["vision_cfg"]["image_size"]
    image = torch.rand(2, 3, side, side)
    with torch.no_grad():
        ours = trained.model.eval().visual(image) @ F.normalize(trained.table[: len(concepts())], dim=-1).T
        classes = embed_classes(old, TOKENIZER)
        V = torch.linalg.svd(classes, full_matrices=False).Vh[: ARCHITECTURES[name]["embed_dim"]]
        theirs = (old.eval().visual(image) @ V.T) @ F.normalize(classes @ V.T, dim=-1).T
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_half_of_all_mountains_are_called_violin() -> None:
    """As README, the tutorial and the notebook say of the training scenes."""
    recipe, mountain, violin = training_recipe(), concept_index()["mountain"], concept_index()["violin"]
    scenes = (draw_scene(7, index, recipe) for index in range(20000))
    shown = (scene for scene in scenes if mountain in {sprite.concept for sprite in scene.sprites})
    called = [violin in scene.named and mountain not in scene.named for scene in shown]
    assert len(called) > 80 and 0.4 < sum(called) / len(called) < 0.65
