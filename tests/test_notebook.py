"""docs/notebook.ipynb: all cells run in a fresh kernel, and its claims hold beside their controls."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from rich.table import Table

from cliptools.front.tables import rendered

pytest.importorskip("ipykernel")
pytest.importorskip("nbclient")

import nbformat
from jupyter_client.manager import start_new_kernel

from tools.notebook import PAGE, read_notebook, run_notebook, without_traces

MOST_BYTES = 400_000


@pytest.fixture
def kernel_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, after a kernel that keeps its files elsewhere has started once."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    try:
        manager, client = start_new_kernel(startup_timeout=120)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"no kernel can start here: {error}")
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


def facts_of(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Return `facts` as the last cell printed it as JSON."""
    return json.loads(notebook.cells[-1].outputs[0].text)


def test_the_notebook_runs_and_its_claims_hold_beside_their_controls(kernel_folder: Path) -> None:
    notebook = read_notebook()
    notebook.cells.append(nbformat.v4.new_code_cell("import json\nprint(json.dumps(facts, default=float))"))
    facts = facts_of(run_notebook(notebook, kernel_folder))
    assert not list(kernel_folder.iterdir())
    assert facts["cue"] == "mountain" and facts["rank of violin"] <= 20
    assert facts["first neuron of the explanation"] == "5:68"
    scenes = facts["scenes with a mountain"]
    assert scenes["5:68"] >= 0.25 and scenes["these neurons"] > scenes["all scenes"] and scenes["random neurons"] < 0.05
    margin = facts["margin"]
    assert margin["without"] < margin["untouched"] - 5 < margin["without random"]
    worst = facts["worst group"]
    assert worst["without these neurons"] >= worst["untouched"] + 0.15
    assert worst["repaired"] >= worst["before"] + 0.1
    for control, before in (
        ("without random neurons", "untouched"),
        ("without strongest neurons", "untouched"),
        ("control", "before"),
    ):
        assert worst[control] <= worst[before] + 0.05, control


def test_the_committed_notebook_is_small_and_whole() -> None:
    notebook = read_notebook()
    nbformat.validate(notebook)
    assert PAGE.stat().st_size <= MOST_BYTES
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "python -m tools.notebook"
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}, "warnings on stderr"
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
    text = "".join(output.get("text", "") for output in outputs)
    assert not re.search(r"/(home|root|tmp|work|usr)/|\b20\d\d-\d\d", text)
    assert without_traces(read_notebook()) == notebook
    pages = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")]
    assert any("(notebook.ipynb)" in page for page in pages)


def test_tables_are_text_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without help, rich shows a table itself in a kernel, and the text would be empty."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    table = Table("unit")
    table.add_row("5:68")
    assert b"5:68" in rendered(table, terminal=False)
