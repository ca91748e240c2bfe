"""clip-spurious --mismatch and --cue, and ct.mismatch: against plain loops, in blocks, on bundles, and on emoji-vit2's plants."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.advgen_input import inside
from helpers.tiny_suite import TEXTS, Suite
from torch import Tensor

import cliptools as ct
from cliptools.analysis.mismatch import ALIKE, Mismatch, Pairs
from cliptools.analysis.seen import ReadDirections
from cliptools.errors import StreamError, TextError, UsageError
from cliptools.front.mismatch import require_read
from cliptools.models.text_encoder import encode_texts
from cliptools.text.emoji_concepts import concepts, plants

UNITS, TEXT_COUNT, D = 23, 11, 7


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return q, r, sd(a), Sigma and unit texts of units, some of which never acted; some q are larger than sd(a) allows."""
    generator = torch.Generator().manual_seed(seed)
    q, r, x, t = (torch.randn(n, D, dtype=torch.float64, generator=generator) for n in (UNITS, UNITS, 40, TEXT_COUNT))
    q[3], r[3] = 0, 0
    deviation = torch.linspace(0.3, 3, UNITS, dtype=torch.float64)
    return q, r / r.norm(dim=1, keepdim=True).clamp(min=1e-300), deviation, x.T @ x / 40, t / t.norm(dim=1, keepdim=True)


def oracle(
    q: Tensor, r: Tensor, deviation: Tensor, covariance: Tensor, t: Tensor, s: list[Tensor], own: list[int]
) -> dict[str, list[list[float]]]:
    """Return all scores of pairs, one number after the other; `own` is the text that is s itself, or -1."""
    mean = [sum(float(t[j, k]) for j in range(len(t))) / len(t) for k in range(D)]
    centred = [[float(t[j, k]) - mean[k] for k in range(D)] for j in range(len(t))]
    things = [[float(s[i][k]) - mean[k] for k in range(D)] for i in range(len(s))]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    def product(a: list[float], b: list[float]) -> float:
        return sum(a[i] * float(covariance[i, j]) * b[j] for i in range(D) for j in range(D))

    def see(a: list[float]) -> list[float]:
        correlation = [dot(q[n].tolist(), a) / float(deviation[n]) / math.sqrt(product(a, a)) for n in range(UNITS)]
        return [min(1.0, max(0.0, value)) * float(sd) for value, sd in zip(correlation, deviation, strict=True)]

    def cosine(a: list[float], b: list[float]) -> float:
        return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))

    made: dict[str, list[list[float]]] = {name: [] for name in ("G", "together", "similarity", "own", "z", "own_z")}
    for thing in things:
        made["G"].append([sum(x * max(0.0, dot(r[n].tolist(), b)) for n, x in enumerate(see(thing))) for b in centred])
        made["together"].append([cosine(see(thing), see(b)) for b in centred])
        made["similarity"].append([cosine(thing, b) for b in centred])
        made["own"].append([product(thing, b) for b in centred])
    for name in ("G", "own"):
        for row, skipped in zip(made[name], own, strict=True):
            others = [x for j, x in enumerate(row) if j != skipped]
            mean_x = sum(others) / len(others)
            deviation = math.sqrt(sum((x - mean_x) ** 2 for x in others) / len(others))
            made["z" if name == "G" else "own_z"].append([(x - mean_x) / deviation for x in row])
    return made


def expected(
    made: dict[str, list[list[float]]], own: list[int], near: float, alike: bool, count: int
) -> list[tuple[int, int, int]]:
    """Return s, t and the control's rank of the first pairs."""
    pairs = [
        (i, j)
        for i, row in enumerate(made["z"])
        for j in range(len(row))
        if j != own[i] and made["G"][i][j] > 0 and (alike or (made["together"][i][j] < ALIKE and made["similarity"][i][j] < near))
    ]
    first = sorted(pairs, key=lambda pair: -made["z"][pair[0]][pair[1]])[:count]
    return [(i, j, 1 + sum(made["own_z"][k][m] > made["own_z"][i][j] for k, m in pairs)) for i, j in first]


def check(pairs: Pairs, made: dict[str, list[list[float]]], first: list[tuple[int, int, int]]) -> None:
    assert list(zip(pairs.s.tolist(), pairs.t.tolist(), pairs.own_rank.tolist(), strict=True)) == first
    for name, column in pairs.scores._asdict().items():
        assert column.tolist() == pytest.approx([made[name][i][j] for i, j, _ in first], abs=1e-9), name


@pytest.mark.parametrize("at_once", [1, 40, 1 << 20])
@pytest.mark.parametrize("alike", [False, True])
def test_pairs_are_those_of_plain_loops(at_once: int, alike: bool) -> None:
    """Blocks of one text and of all texts give the same."""
    q, r, deviation, covariance, t = inputs()
    own = list(range(TEXT_COUNT))
    made = oracle(q, r, deviation, covariance, t, list(t), own)
    search = Mismatch(ReadDirections(q, deviation, covariance), r, t, near=0.4, alike=alike, at_once=at_once)
    assert len(search.row_blocks) == max(1, math.ceil(TEXT_COUNT / max(1, at_once // TEXT_COUNT)))
    for count in (5, 1000):
        first = expected(made, own, 0.4, alike, count)
        assert 5 <= len(first) < TEXT_COUNT**2
        check(search.largest(count), made, first)
    assert (len(expected(made, own, 0.4, alike, 1000)) == TEXT_COUNT * (TEXT_COUNT - 1)) == alike


@pytest.mark.parametrize("number", [None, 4])
def test_a_cue_within_the_vocabulary_and_another(number: int | None) -> None:
    q, r, deviation, covariance, t = inputs(1)
    cue = inputs(2)[-1][0] if number is None else t[number]
    own = [-1 if number is None else number]
    made = oracle(q, r, deviation, covariance, t, [cue], own)
    pairs = Mismatch(ReadDirections(q, deviation, covariance), r, t, near=0.5).of_cue(cue, number, 4)
    check(pairs, made, expected(made, own, 0.5, False, 4))
    see, write = Mismatch(ReadDirections(q, deviation, covariance), r, t).parts(cue, int(pairs.t[0]))
    assert float(see @ write) == pytest.approx(float(pairs.scores.G[0]), abs=1e-12)


def test_units_that_see_or_write_nothing_give_no_pairs(suite: Suite) -> None:
    """As in a bundle of one image, or of equal ones."""
    bundle = ct.read(suite.bundle("second-words"))
    for name in ("read", "direction"):
        dead = replace(bundle, tensors=dict(bundle.tensors) | {name: np.zeros_like(bundle[name])})
        assert not len(ct.mismatch(dead, device="cpu")) and not len(ct.mismatch(dead, ["cat", "a tree"], device="cpu"))


def test_records_are_those_of_the_command(suite: Suite, tmp_path: Path) -> None:
    """Neurons with words, neurons without words and a vocabulary that is named, and pairs of a neuron and a head."""
    for name, pool in (("second-words", None), ("second", suite.pool), ("pooled-words", None), ("heads", suite.pool)):
        words = () if pool is None else ("--pool", pool)
        for options, arguments in (
            (("--mismatch", "--alike"), {"alike": True}),
            (
                ("--cue", "cat", "--cue", "a tree", "--head", 2, "--alike", "--near", 0.9, "--neurons", 7),
                {"cue": ["cat", "a tree"], "head": 2, "units": 7},
            ),
        ):
            more = {"near": 0.9, "alike": True} if "cue" in arguments else {}
            records = ct.mismatch(ct.read(suite.bundle(name)), texts=pool, device="cpu", **arguments, **more)
            records.save(tmp_path / "pairs.jsonl")
            ended = inside("spurious", *options, *words, suite.bundle(name))
            assert ended.returncode == 0, ended.stderr.decode()
            assert (tmp_path / "pairs.jsonl").read_bytes() == ended.stdout and len(records) == (4 if "cue" in arguments else 20)
            table = inside("spurious", *options, *words, "-f", "table", suite.bundle(name))
            assert table.stdout.decode().rstrip("\n") == records.table()
            assert list(records.to_frame()["writes"]) == [record["writes"] for record in records]


def test_fields_of_a_record(suite: Suite) -> None:
    """Parts of units sum to G, in the bundle's own numbers."""
    bundle = ct.read(suite.bundle("second-words"))
    records = ct.mismatch(bundle, alike=True, head=3, units=8, layers=[1], device="cpu")
    model = ct.load_model(suite.vit, device="cpu")
    t = encode_texts(model, list(TEXTS)).double().numpy()
    t = t - t.mean(0)
    rows = np.flatnonzero(bundle["unit"][:, 0] == 1)
    for rank, record in enumerate(records, 1):
        s, w = t[TEXTS.index(record["sees"])], t[TEXTS.index(record["writes"])]
        covariance, deviation = bundle["embedding_covariance"].astype(float), bundle["deviation"][rows].astype(float)
        see = np.clip(bundle["read"][rows].astype(float) @ s / math.sqrt(s @ covariance @ s) / deviation, 0, 1)
        write = np.maximum(0, bundle["direction"][rows].astype(float) @ w)
        part = see * write * deviation
        assert record["G"] == pytest.approx(part.sum(), rel=1e-4) and record["rank"] == rank
        order = np.argsort(-part, kind="stable")
        assert [unit["neuron"] for unit in record["units"]] == bundle["unit"][rows[order[:8]], 1].tolist()
        first, n = record["units"][0], order[0]
        assert first["layer"] == 1 and first["share"] == pytest.approx(part[n] / part.sum(), rel=1e-3)
        assert (first["see"], first["write"]) == pytest.approx((see[n], write[n]), rel=1e-3)
        assert record["own"] == pytest.approx(s @ covariance @ w, rel=1e-3, abs=1e-9)
        assert record["settings"]["layers"] == [1] and record["settings"]["with_alike"] and record["bundle"] == bundle.digest


def test_misuse(suite: Suite, tmp_path: Path) -> None:
    bundle = ct.read(suite.bundle("second-words"))
    (tmp_path / "one.txt").write_text("cat\n")
    for arguments, error, message in (
        ({"head": 0}, UsageError, "head=0: expected"),
        ({"near": 0.0}, UsageError, "near=0.0: expected"),
        ({"units": 0}, UsageError, "units=0: expected"),
        ({"cue": ["cat", " "]}, UsageError, "--cue: found an empty text"),
        ({"texts": tmp_path / "one.txt"}, TextError, "expected at least two texts, found 1"),
        ({"layers": [7]}, UsageError, "the bundle has no layer 7"),
    ):
        with pytest.raises(error, match=message):
            ct.mismatch(bundle, device="cpu", **arguments)
    old = replace(bundle, tensors={name: tensor for name, tensor in bundle.tensors.items() if name != "read"})
    with pytest.raises(StreamError, match="without `read`, of an older version; make it again with clip-effects"):
        ct.mismatch(old)
    pairs = replace(old, tensors=dict(old.tensors) | {"sign": np.ones(bundle.units, np.int8)})
    with pytest.raises(StreamError, match="without `read`, of neuron-head pairs without --keep; make it again with --keep"):
        require_read(pairs)
    with pytest.raises(StreamError, match="the bundle has no units"):
        ct.mismatch(bundle.select(np.arange(0)))
    for words, message in (
        (("--mismatch", "--depict", "cat"), "--depict is for pairs of classes: leave it out with --mismatch"),
        (("--cue", "cat", "--by", "overlap"), "--by is for pairs of classes: leave it out with --cue"),
        (("--classes", "cifar10", "--pool", "emoji"), "--pool works only together with --mismatch or --cue"),
    ):
        ended = inside("spurious", *words, suite.bundle("second-words"))
        assert ended.returncode == 2 and message in ended.stderr.decode()


@pytest.fixture(scope="module")
def plant_records() -> list[dict]:
    """Return the texts that each planted cue calls up, of a bundle of emoji-vit2 from few scenes."""
    bundle = ct.effects(limit=500, device="cpu")
    names = [concept.name for concept in concepts()]
    cues = [names[plant.cue] for plant in plants()]
    return json.loads(json.dumps(list(ct.mismatch(bundle, cues, texts=names, head=3, device="cpu"))))


def test_planted_cues_call_up_their_classes(plant_records: list[dict]) -> None:
    """Of 18 cues half call up the planted class among the first three of 526 texts; by chance it would be one in 175."""
    names = [concept.name for concept in concepts()]
    found = sum(
        names[plant.named] in [record["writes"] for record in plant_records if record["sees"] == names[plant.cue]]
        for plant in plants()
    )
    assert found >= 9, found
