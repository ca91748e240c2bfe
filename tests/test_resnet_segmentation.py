"""Label maps by neuron-head pairs and their baselines compared with loops, scikit-learn and torchmetrics."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from sklearn.metrics import confusion_matrix, jaccard_score
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import MulticlassJaccardIndex

from cliptools.emoji.render import SceneSource, render
from cliptools.emoji.scenes import Recipe
from cliptools.errors import ModelError, TextError, UsageError
from cliptools.images.segmentation.label_maps import IGNORED
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_texts
from cliptools.segmentation import BY_PAIRS, RESNET, masks
from cliptools.segmentation.masks import WindowAverage, best_texts, to_labels, window_starts
from cliptools.segmentation.metrics import LabelFit, label_fit
from cliptools.segmentation.resnet_methods import (
    PairUnits,
    check_top_pairs,
    class_texts,
    default_pairs,
    head_outputs,
    heat_of,
    pair_logits,
    resnet_method,
    select_pairs,
)
from cliptools.segmentation.towers import PoolTokens, corner_of, native_size, on_grid, pool_tokens, repair_corner, token_stride
from cliptools.text.emoji_concepts import concepts
from cliptools.unit_effects.resnet_pooling import pair_directions, supported_resnet

EXACT = {"rtol": 1e-9, "atol": 1e-11}
SHAPES = [  # image_size, layers, width, heads, output_dim
    (64, [1, 1, 1, 1], 2, 4, 7),
    (96, [1, 2, 1, 1], 2, 8, 19),
    (64, [1, 1, 1, 2], 4, 2, 5),
]
TEXTS = 3


def random_resnet(shape: tuple, seed: int = 0) -> ModifiedResNet:
    """Return a tower in which every weight matters, in float64."""
    size, layers, width, heads, d = shape
    torch.manual_seed(seed)
    visual = ModifiedResNet(layers, d, heads, image_size=size, width=width).double().eval().requires_grad_(False)
    for module in visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.running_var):
                values.copy_(torch.rand_like(values) + 0.5)
            for values in (module.bias, module.running_mean):
                values.copy_(0.3 * torch.randn_like(values))
        if isinstance(module, torch.nn.Linear):
            module.bias.copy_(0.2 * torch.randn_like(module.bias))
    visual.attnpool.positional_embedding.mul_(2)
    return visual


@pytest.fixture(scope="module", params=range(len(SHAPES)), ids=lambda i: f"shape{i}")
def tower(request: pytest.FixtureRequest) -> tuple[ModifiedResNet, Tensor]:
    visual = random_resnet(SHAPES[request.param], request.param)
    g = torch.Generator().manual_seed(9)
    return visual, torch.randn(2, 3, visual.image_size, visual.image_size, dtype=torch.float64, generator=g)


def unit_texts(visual: ModifiedResNet, count: int = TEXTS) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.nn.functional.normalize(torch.randn(count, visual.output_dim, dtype=torch.float64, generator=g), dim=1)


def all_pairs(visual: ModifiedResNet, keep: float = 0.8) -> PairUnits:
    """Return pairs of a bundle in random order, some of them left out, with random signs of their directions."""
    g = torch.Generator().manual_seed(5)
    H, C = visual.attnpool.num_heads, visual.attnpool.v_proj.in_features
    every = torch.randperm(H * C, generator=g)[: int(keep * H * C)]
    unit = torch.stack([torch.full_like(every, 4), every // H, every % H], 1).int()
    w = pair_directions(visual, unit[:, 1].long(), unit[:, 2].long())
    sign = torch.where(torch.rand(len(w), 1, generator=g) < 0.5, -1.0, 1.0).double()
    return PairUnits(torch.nn.functional.normalize(sign * w, dim=1), unit, 40)


def slow_tokens(visual: ModifiedResNet, image: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
    """Return Z [patch, neuron], x [token, neuron] and the mean token's attention [head, token] of one image, head by head."""
    pool = visual.attnpool
    z = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(image[None])))))[0]
    grid = z.shape[1:]
    Z = torch.stack([z[:, i, j] for i in range(grid[0]) for j in range(grid[1])])
    x = torch.cat([Z.mean(0)[None], Z]) + pool.positional_embedding
    e = len(z) // pool.num_heads
    rows = []
    for h in range(pool.num_heads):
        of = slice(h * e, (h + 1) * e)
        q = pool.q_proj.weight[of] @ x[0] + pool.q_proj.bias[of]
        rows.append(torch.softmax(torch.stack([q @ (pool.k_proj.weight[of] @ y + pool.k_proj.bias[of]) for y in x]) / e**0.5, 0))
    return Z, x, torch.stack(rows), (int(grid[0]), int(grid[1]))


def slow_heads(visual: ModifiedResNet, x: Tensor, a: Tensor) -> Tensor:
    """Return r_i^h [head, token, d] before normalization, including the mean token."""
    pool = visual.attnpool
    e = x.shape[1] // pool.num_heads
    r = torch.zeros(*a.shape, visual.output_dim, dtype=x.dtype)
    for h in range(pool.num_heads):
        of = slice(h * e, (h + 1) * e)
        for i, token in enumerate(x):
            v = pool.v_proj.weight[of] @ token + pool.v_proj.bias[of]
            r[h, i] = a[h, i] * (pool.c_proj.weight[:, of] @ v) + pool.c_proj.bias / (pool.num_heads * len(x))
    return r


def slow_repair(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return [patch, ...] with the mean of its three neighbours in the last cell."""
    field = maps.clone().unflatten(0, grid)
    field[-1, -1] = (field[-1, -2] + field[-2, -1] + field[-2, -2]) / 3
    return field.flatten(0, 1)


def test_tokens_are_the_models(tower) -> None:
    visual, images = tower
    seen = pool_tokens(visual, images)
    torch.testing.assert_close(seen.embedding, visual(images), **EXACT)
    for b, image in enumerate(images):
        Z, x, a, grid = slow_tokens(visual, image)
        torch.testing.assert_close(seen.Z[b], Z, **EXACT)
        torch.testing.assert_close(seen.x[b], x, **EXACT)
        torch.testing.assert_close(seen.a[b], a, **EXACT)
        assert seen.grid == grid
        torch.testing.assert_close(slow_heads(visual, x, a).sum((0, 1)), seen.embedding[b], **EXACT)


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("name", BY_PAIRS)
def test_maps_pair_by_pair(tower, name: str, sink: bool) -> None:
    visual, images = tower
    t, pairs = unit_texts(visual), all_pairs(visual)
    found = resnet_method(name, visual, t, pairs, sink)(images)
    torch.testing.assert_close(found.embedding, visual(images), **EXACT)
    for b, image in enumerate(images):
        Z, x, a, grid = slow_tokens(visual, image)
        r = slow_heads(visual, x, a)[:, 1:]  # [head, patch, d]
        if sink:
            Z, r = slow_repair(Z, grid), torch.stack([slow_repair(of_head, grid) for of_head in r])
        r = torch.stack([torch.stack([y / y.norm() for y in of_head]) for of_head in r])
        for c, text in enumerate(t):
            along = [float(direction @ text) for direction in pairs.r]
            best = sorted(range(len(along)), key=lambda u: -along[u])[: pairs.k]
            expected = torch.zeros(len(Z), dtype=torch.float64)
            for _, n, h in pairs.unit[best].tolist():
                neuron = Z[:, n] if name != "heads" else torch.ones(len(Z), dtype=torch.float64)
                head = r[h] @ text if name != "neurons" else torch.ones(len(Z), dtype=torch.float64)
                expected += neuron * head / pairs.k
            torch.testing.assert_close(found.logits[b, c].flatten(), expected, **EXACT)


@pytest.mark.parametrize("name", RESNET[3:])
def test_baselines_token_by_token(tower, name: str) -> None:
    visual, images = tower
    pool, t = visual.attnpool, unit_texts(visual)
    e = pool.v_proj.in_features // pool.num_heads
    found = resnet_method(name, visual, t)(images)
    for b, image in enumerate(images):
        Z, x, _, _ = slow_tokens(visual, image)
        for i in range(len(Z)):
            if name != "qqkk":
                token = Z[i] if name == "maskclip" else x[i + 1]
                values = pool.v_proj.weight @ token + pool.v_proj.bias
            else:
                values = torch.zeros(len(Z[0]), dtype=torch.float64)
                for h in range(pool.num_heads):
                    of = slice(h * e, (h + 1) * e)
                    v = torch.stack([pool.v_proj.weight[of] @ y + pool.v_proj.bias[of] for y in x])
                    for layer in (pool.q_proj, pool.k_proj):
                        y = torch.stack([layer.weight[of] @ token + layer.bias[of] for token in x])
                        row = torch.stack([y[i + 1] @ other for other in y]) / math.sqrt(e)
                        values[of] += torch.softmax(row, 0) @ v
            feature = pool.c_proj.weight @ values + pool.c_proj.bias
            torch.testing.assert_close(found.logits[b].flatten(1)[:, i], t @ (feature / feature.norm()), **EXACT)


def test_heat_maps_are_of_each_images_own_texts(tower) -> None:
    visual, images = tower
    t = torch.stack([unit_texts(visual), -unit_texts(visual)])
    for name in RESNET:
        heat = heat_of(partial(resnet_method, name, visual, pairs=all_pairs(visual)))(images, t)
        for b in range(2):
            alone = resnet_method(name, visual, t[b], all_pairs(visual))(images[b : b + 1])
            torch.testing.assert_close(heat.scores[b], alone.logits[0], **EXACT)


class Largest(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation creates."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in pytree.tree_leaves(out) if isinstance(x, Tensor))])
        return out


def test_no_map_of_a_single_pair_is_made() -> None:
    """Five texts, 128 pairs, 25 tokens and 4 images: maps of single pairs would be by far the largest tensor."""
    visual = random_resnet((64, [1, 1, 1, 1], 4, 8, 6))
    images = torch.randn(4, 3, 160, 160, dtype=torch.float64)
    H, C = 8, 128
    with on_grid(visual, 5, 5):
        seen = pool_tokens(visual, images)
        pairs, t = all_pairs(visual), unit_texts(visual, 5)
        chosen = select_pairs(pairs.r, pairs.unit, t, pairs.k, H, C)
        with Largest() as largest:
            pair_logits(repair_corner(seen.Z, seen.grid), head_outputs(visual, seen, True), t, chosen)
    assert C * C <= largest.elements < 4 * 25 * H * C / 4


def test_the_papers_share_of_pairs() -> None:
    assert default_pairs(147_456) == 20_000 and default_pairs(8192) == 1111 and default_pairs(2) == 1
    assert check_top_pairs(None, 8192) == 1111 and check_top_pairs(8192, 8192) == 8192
    with pytest.raises(UsageError, match="--top-pairs 9: the bundle has 8 pairs"):
        check_top_pairs(9, 8)


def test_selection_is_signed() -> None:
    r = torch.eye(3, dtype=torch.float64).repeat(2, 1) * torch.tensor([1, 1, 1, -1, -1, -1.0])[:, None]
    unit = torch.tensor([[4, n, h] for h in range(2) for n in range(3)], dtype=torch.int32)
    S = select_pairs(r, unit, torch.eye(3, dtype=torch.float64), 1, 2, 3).S
    assert S.nonzero().tolist() == [[c, 0, c] for c in range(3)]


def planted(corner: float, seed: int = 3) -> PoolTokens:
    """Return tokens of 9 images on a grid of 3 × 4, with the last token several times as large as the others."""
    g = torch.Generator().manual_seed(seed)
    Z = torch.rand(9, 12, 6, dtype=torch.float64, generator=g)
    Z[:, -1] *= corner
    a = torch.rand(9, 2, 13, dtype=torch.float64, generator=g)
    return PoolTokens(Z, torch.cat([Z.mean(1, keepdim=True), Z], 1), a / a.sum(-1, keepdim=True), Z[:, 0], (3, 4))


def test_a_sink_is_detected_not_assumed(tower) -> None:
    assert not corner_of(planted(1)).is_sink and corner_of(planted(5)).is_sink
    by_attention = planted(1)
    by_attention.a[..., -1] += 1
    corner = corner_of(by_attention)
    assert corner.is_sink and corner.attention > 2 and corner.norm < 2 and corner.attention_first == 1
    elsewhere = planted(1)
    elsewhere.Z[:, 0] *= 5
    assert not corner_of(elsewhere).is_sink
    once = planted(1)
    once.Z[0, -1] *= 100
    assert not corner_of(once).is_sink
    visual, images = tower
    seen = pool_tokens(visual, images)
    norms = [sorted(float(z.norm()) for z in Z) for Z in seen.Z]
    middle = [row[(len(row) - 1) // 2] for row in norms]
    ratios = sorted(float(Z[-1].norm()) / m for Z, m in zip(seen.Z, middle, strict=True))
    assert corner_of(seen).norm == pytest.approx(ratios[0], abs=1e-12)


def test_the_corner_is_its_neighbours_mean() -> None:
    maps = torch.randn(2, 12, 5, dtype=torch.float64)
    for before, after in zip(maps, repair_corner(maps, (3, 4)), strict=True):
        torch.testing.assert_close(after, slow_repair(before, (3, 4)), **EXACT)
    with pytest.raises(UsageError, match="1 × 12 tokens"):
        repair_corner(maps, (1, 12))


def test_other_sizes_than_the_models(tower) -> None:
    visual, _ = tower
    image = torch.randn(1, 3, 96, 160, dtype=torch.float64)
    with pytest.raises(ModelError, match="tokens"):
        pool_tokens(visual, image)
    kept = visual.attnpool.positional_embedding
    with on_grid(visual, 3, 5):
        assert pool_tokens(visual, image).grid == (3, 5)
    assert visual.attnpool.positional_embedding is kept
    assert native_size(visual) == (visual.image_size,) * 2 and token_stride(visual) == (32, 32)


@pytest.mark.parametrize(("size", "stride", "wanted"), [((11, 8), 2, (20, 17)), ((7, 5), 5, (7, 5)), ((5, 13), 3, (3, 4))])
def test_windows_against_an_average_pixel_by_pixel(
    size: tuple[int, int], stride: int, wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    side, grid, texts = (5, 5), (2, 3), 21
    starts = [window_starts(length, 5, stride) for length in size]
    corners = [(top, left) for top in starts[0] for left in starts[1]]
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(len(corners), texts, *grid, dtype=torch.float64, generator=g)
    total, times = torch.zeros(texts, *size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for (top, left), of_window in zip(corners, logits, strict=True):
        pixels = torch.nn.functional.interpolate(of_window[None], size=side, mode="bilinear")[0]
        for y in range(side[0]):
            for x in range(side[1]):
                total[:, top + y, left + x] += pixels[:, y, x]
                times[top + y, left + x] += 1
    assert (times > 0).all()
    mean = total / times
    averaged = WindowAverage(logits, (starts[0], starts[1]), side, size)
    torch.testing.assert_close(averaged.at(*size), mean, **EXACT)
    resized = torch.nn.functional.interpolate(mean[None], size=wanted, mode="bilinear")[0]
    torch.testing.assert_close(averaged.at(*wanted, slice(4, 9)), resized[4:9], **EXACT)

    monkeypatch.setattr(masks, "MOST_LOGITS", 5 * wanted[0] * wanted[1])  # texts in several chunks
    found = best_texts(averaged, *wanted, sharpness=2.0)
    probability = torch.softmax(2 * resized, 0)
    assert (found.text == resized.argmax(0)).all()
    torch.testing.assert_close(found.probability, probability.amax(0), **EXACT)
    label_of_text = torch.arange(texts) // 2 + 1  # two texts a class
    cut = float(found.probability.median()) + 1e-9  # between two probabilities, so that rounding decides nothing
    labels = to_labels(found, label_of_text, cut)
    for y in range(wanted[0]):
        for x in range(wanted[1]):
            best = int(probability[:, y, x].argmax())
            assert int(labels[y, x]) == (best // 2 + 1 if probability[best, y, x] >= cut else 0)
    assert {0} < set(labels.flatten().tolist()) and 0 not in to_labels(found, label_of_text)


def test_windows_end_with_the_image() -> None:
    assert window_starts(10, 4, 3) == [0, 3, 6] and window_starts(11, 4, 3) == [0, 3, 6, 7] and window_starts(4, 4, 2) == [0]


def test_class_texts_lose_what_they_share() -> None:
    t = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64) + 3, dim=1)
    mean = sum(t) / 5
    for found, one in zip(class_texts(t), t, strict=True):
        torch.testing.assert_close(found, (one - mean) / (one - mean).norm(), **EXACT)
    assert class_texts(t, "none") is t
    with pytest.raises(TextError, match="--center none"):
        class_texts(t[:1])


def test_label_metrics_against_scikit_learn_and_torchmetrics() -> None:
    rng = np.random.default_rng(4)
    total, classes = LabelFit.empty(6), 6
    jaccard = MulticlassJaccardIndex(classes, ignore_index=IGNORED, average="none")
    everything: list[tuple[np.ndarray, np.ndarray]] = []
    for side in (4, 9, 15):
        truth = rng.integers(IGNORED, 5, (side, side + 2))  # class 5 is never true
        labels = np.where(rng.random(truth.shape) < 0.5, truth.clip(0), rng.integers(0, classes, truth.shape))
        one = label_fit(labels, truth, classes)
        counts = truth != IGNORED
        everything.append((labels[counts], truth[counts]))
        matrix = confusion_matrix(truth[counts], labels[counts], labels=range(classes))
        assert (
            (one.both == np.diag(matrix)).all() and (one.predicted == matrix.sum(0)).all() and (one.true == matrix.sum(1)).all()
        )
        total += one
        jaccard.update(torch.from_numpy(labels), torch.from_numpy(truth))
    labels, truth = (np.concatenate(part) for part in zip(*everything, strict=True))
    expected = jaccard_score(truth, labels, average=None, labels=range(classes))
    np.testing.assert_allclose(total.iou, expected, atol=1e-12)
    np.testing.assert_allclose(total.iou, jaccard.compute().numpy(), atol=1e-6)
    assert total.mean_iou == pytest.approx(expected.mean()) and total.accuracy == pytest.approx((labels == truth).mean())
    assert total.images == 3 and total.mean_iou_true == pytest.approx(expected[:5].mean())


def test_classes_that_nothing_has_do_not_count() -> None:
    truth, labels = np.array([[1, 1, IGNORED]]), np.array([[1, 1, 2]])
    fit = label_fit(labels, truth, 4)
    assert np.isnan(fit.iou[[0, 2, 3]]).all() and fit.mean_iou == 1
    nothing = label_fit(labels, np.full((1, 3), IGNORED), 4)
    assert np.isnan([nothing.mean_iou, nothing.mean_iou_true, nothing.accuracy]).all()


def test_label_maps_of_emoji_rn_mean_something() -> None:
    """Twelve scenes of two emoji, 24 classes: the pairs name most pixels right, and more than the weakest baseline."""
    model = load_model("emoji-rn2", device="cpu")
    visual = supported_resnet(model.clip)
    source = SceneSource(12, seed=4_100_000, recipe=Recipe(counts=(0.0, 1.0, 0.0, 0.0)), size=128)
    names = sorted({name for index in range(12) for name in source.names_in(index)})
    t = class_texts(encode_texts(model, names))
    every = torch.arange(8192)
    unit = torch.stack([torch.full_like(every, 4), every // 16, every % 16], 1).int()
    r = torch.nn.functional.normalize(pair_directions(visual, unit[:, 1], unit[:, 2]), dim=1)
    fits = {}
    for name in ("pairs", "qqkk"):
        look, fits[name] = resnet_method(name, visual, t, PairUnits(r, unit, 1111)), LabelFit.empty(len(names))
        for index in range(12):
            scene = source.scene(index)
            visible = render([scene], 128).visible[0].numpy()
            truth = np.full((128, 128), IGNORED)
            for slot, sprite in enumerate(scene.sprites):
                truth[visible[slot] > 0.5] = names.index(concepts()[sprite.concept].name)
            logits = look(model.transform(source.load(index))[None]).logits
            found = best_texts(WindowAverage(logits, ([0], [0]), (128, 128), (128, 128)), 128, 128, probabilities=False)
            fits[name] += label_fit(found.text.numpy(), truth, len(names))
    assert fits["pairs"].mean_iou > 0.6 and fits["pairs"].mean_iou > fits["qqkk"].mean_iou + 0.1
