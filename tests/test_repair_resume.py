"""The study of repairs goes on after an interruption."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import ROOT

from cliptools.errors import CliptoolsError
from cliptools.io.cache import kept_records
from cliptools.text.emoji_concepts import concepts, plants


def test_a_run_that_was_interrupted_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run that goes on gives the bytes of a run without an interruption, and measures no pair twice."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import repair

    stops: list[Any] = []
    measured: list[Any] = []

    class Study(repair.Repairs):  # type: ignore[misc]
        """The study with measurements that are drawn."""

        def __init__(self) -> None:
            self.groups, self.path, self.bundle = tmp_path, tmp_path / "b", SimpleNamespace(units=7)
            self.model, self.seed, self.rng = SimpleNamespace(name="m"), 3, np.random.default_rng(3)
            self.names = [concept.name for concept in concepts()]

        def pair(self, plant: Any) -> Iterator[tuple[str, str, Any]]:
            """Draw as the study draws."""
            assert plant not in stops
            measured.append(plant)
            rng = np.random.default_rng([*self.rng.permutation(self.bundle.units), int(self.rng.integers(2**31))])
            for units in ("repair", "random"):
                yield units, "null", repair.Measured(5, rng.random(4), rng.random(4), rng.random((2, 8)) < 0.5)

    def run(output: Path | None) -> bytes:
        study = Study()
        with kept_records(output, resume=True) as kept:
            return bytes(repair.table(study, study.all(kept)))

    for name in ("scenes.jsonl", "b"):
        (tmp_path / name).write_text(name)
    table, part = tmp_path / "t.csv", tmp_path / "t.csv.part"
    whole = run(None)
    assert measured == list(plants()) and whole.count(b"\n") == 3
    for stop in (5, 11):
        stops[:] = [plants()[stop]]
        with pytest.raises(AssertionError):
            run(table)
    stops.clear()
    measured.clear()
    with part.open("ab") as stream:
        stream.write(b'{"edits": [{"un')  # a killed run leaves a part of a line
    assert run(table) == whole and measured == list(plants())[11:] and not part.exists()
    stops[:] = [plants()[3]]
    with pytest.raises(AssertionError):
        run(table)
    earlier = repair.SINGLE
    monkeypatch.setattr(repair, "SINGLE", 9)
    with pytest.raises(CliptoolsError, match=f"started with single {earlier}, now asked for 9"):
        run(table)
