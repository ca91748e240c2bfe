"""The functions of the front that read a bundle: each gives what its command gives."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.advgen_input import inside, parsed
from helpers.tiny_suite import TEXTS, Suite

import cliptools as ct
from cliptools.errors import CliptoolsError, ModelError, UsageError
from cliptools.io.bundle import Bundle


def output(suite: Suite, case: str, *more: Any) -> bytes:
    """Return the standard output of one of the suite's command lines."""
    command = suite.cases()[case]
    stdin = command.stdin.read_bytes() if command.stdin else b""
    ended = inside(command.command, *command.words, *more, stdin=stdin)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def without_last_step(bundle: Bundle) -> bytes:
    return replace(bundle, header=replace(bundle.header, history=bundle.header.history[:-1])).to_bytes()


DECOMPOSED: dict[str, tuple[str, dict[str, Any]]] = {
    "decompose": ("second", {"m": 3, "cache": False}),
    "decompose textspan": ("heads", {"m": 2, "method": "textspan", "cache": False}),
    "decompose pairs": ("pooled", {"m": 3, "prefix": [1, 2]}),
}


@pytest.mark.parametrize("case", DECOMPOSED)
def test_words_are_those_of_the_command(suite: Suite, case: str, tmp_path: Path) -> None:
    name, arguments = DECOMPOSED[case]
    bundle = ct.decompose(ct.read(suite.bundle(name)), suite.pool, device="cpu", **arguments)
    path = tmp_path / "command.safetensors"
    path.write_bytes(output(suite, case))
    assert without_last_step(bundle) == without_last_step(ct.read(path))
    steps = bundle.header.history
    assert [step["command"] for step in steps] == ["clip-effects", "cliptools.decompose"]
    assert steps[1]["arguments"]["m"] == arguments["m"] and steps[1]["arguments"]["pool"] == str(suite.pool)


def test_texts_of_every_kind(suite: Suite) -> None:
    effects = ct.read(suite.bundle("second"))
    file = ct.decompose(effects, str(suite.pool), m=3)
    for texts in (TEXTS, iter(TEXTS), [*TEXTS, "cat"]):
        listed = ct.decompose(effects, texts, m=3, model=ct.load_model(suite.vit, device="cpu"))
        assert listed.text_list("words")["texts"] == file.text_list("words")["texts"]
        assert all(np.array_equal(listed[name], file[name]) for name in ("word", "coefficient", "residual"))
    for texts in ([], ["cat", " "], [3]):
        with pytest.raises(CliptoolsError, match="expected the name of a vocabulary, a file, or a list of texts"):
            ct.decompose(effects, texts)
    with pytest.raises(ModelError, match="is not the bundle's"):
        ct.decompose(effects, TEXTS, model=ct.load_model(device="cpu"))
    with pytest.raises(UsageError, match="prefix=4: expected a number from 1 to 3"):
        ct.decompose(effects, TEXTS, m=3, prefix=[4])


TOP: dict[str, tuple[str, dict[str, Any]]] = {
    "top": ("second-words", {}),
    "top raw": ("second", {"raw": True}),
    "top pairs": ("pooled-words", {"raw": True}),
}


@pytest.mark.parametrize("case", TOP)
def test_top_images_are_those_of_the_command(suite: Suite, case: str, tmp_path: Path) -> None:
    name, arguments = TOP[case]
    bundle = ct.read(suite.bundle(name))
    records = ct.top(bundle, suite.images, head=2, batch_size=4, workers=0, device="cpu", **arguments)
    assert list(records) == parsed(output(suite, case))
    assert records.table().splitlines()[0].split()[:3] == ["unit", "inertia", "norm"]
    records.save(tmp_path / "top.jsonl")
    assert [json.loads(line) for line in (tmp_path / "top.jsonl").read_text().splitlines()] == list(records)


def test_top_images_of_one_layer_and_misuse(suite: Suite) -> None:
    bundle = ct.read(suite.bundle("second-words"))
    records = ct.top(bundle, suite.images, layers=[2], head=1, images_per_unit=2, model=ct.load_model(suite.vit, device="cpu"))
    assert [record["layer"] for record in records] == [2, 2]
    with pytest.raises(UsageError, match="sort='size': expected one of index, clear"):
        ct.top(bundle, suite.images, sort="size")
