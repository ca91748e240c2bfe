"""Training: its tower equals open_clip's, its losses fall, and its measures are correct."""

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor

import training  # noqa: F401  (applies the torchvision remedy first)
from cliptools.emoji.scenes import concepts_in
from cliptools.text.emoji_concepts import concepts
from training.batches import make_batch
from training.export import write_model
from training.image import optimizer_for, recipe_at
from training.joint import CompactVocabulary, align, class_texts, text_loss, train_both, within
from training.objective import Weights, objective
from training.recipes import ARCHITECTURES
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
    model, table = CLIP(**TINY), torch.nn.Parameter(torch.randn(len(concepts()), TINY["embed_dim"]))
    optimizer, losses = optimizer_for(model, table), []
    batch = make_batch(1, 0, 32, recipe_at(0.0), 32, 8, 10, "cpu")
    for _ in range(25):
        terms = objective(model.visual, table, torch.tensor(15.0), batch, Weights())
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append({key: float(value.detach()) for key, value in terms.items()})
    assert all(losses[-1][term] < losses[0][term] for term in ("table", "path", "dense", "path_dense", "loss"))

    before = model.token_embedding.weight.clone()
    vocabulary = CompactVocabulary(model, TOKENIZER, texts=2000)
    target = within(table.detach(), 12)
    batch_of_texts = text_batch(np.random.default_rng(5), 128, vocabulary, "cpu")

    def loss() -> float:
        return float(text_loss(encode_tokens(model, batch_of_texts.tokens), target, batch_of_texts.named).detach())

    untrained = loss()
    assert align(model, target, vocabulary, 0.04) > 1
    assert loss() < untrained - 0.2
    assert train_both(model, vocabulary, TINY, 0.02, 16, "cpu") >= 1
    vocabulary.restore(model)
    changed = (model.token_embedding.weight != before).any(1)
    assert set(changed.nonzero()[:, 0].tolist()) <= set(vocabulary.used.tolist()) and int(changed.sum()) > 100

    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY)
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


def test_drawn_texts_name_their_concepts() -> None:
    rng = np.random.default_rng(3)
    for _ in range(300):
        text, named = draw_text(rng)
        assert set(named) <= set(concepts_in(text)), text


def test_class_texts_name_each_concept() -> None:
    texts = class_texts(np.random.default_rng(1))
    assert len(texts) == len(concepts())
    assert all(i in concepts_in(text) for i, text in enumerate(texts))


def test_target_stays_within_the_rank() -> None:
    target = within(torch.randn(40, 16, dtype=torch.float64), 5)
    assert torch.linalg.matrix_rank(target) == 5
    torch.testing.assert_close(target.norm(dim=1), torch.ones(40, dtype=torch.float64))
