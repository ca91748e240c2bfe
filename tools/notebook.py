"""Run docs/notebook.ipynb in a fresh kernel and write its outputs anew: python -m tools.notebook.

The text and the code of the cells are edited in the notebook itself; only outputs are written here.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "notebook.ipynb"
SECONDS = 600  # of a cell
PATIENCE = 120  # seconds for a kernel to start and for outputs to arrive; nbclient would leave late outputs out after 4
NO_WIDGETS = "ignore:IProgress not found"
"""tqdm, which other packages import, warns in every kernel without ipywidgets."""
VOLATILE = ("execution", "widgets")
"""Metadata that differ between equal runs."""


def read_notebook(path: Path = PAGE) -> NotebookNode:
    """Return a notebook; cells of another version of the format are converted."""
    return nbformat.read(path, as_version=4)


def run_notebook(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells in a fresh kernel of this Python, with this checkout's package, and return the notebook with its outputs.

    Args:
        folder: Working directory of the kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: A cell ends with an error.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": NO_WIDGETS}
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        notebook, timeout=SECONDS, startup_timeout=PATIENCE, iopub_timeout=PATIENCE, raise_on_iopub_timeout=True,
        kernel_name="python3", resources=resources, record_timing=False, coalesce_streams=True,
    )  # fmt: skip
    client.execute(env=environment)
    return notebook


def without_traces(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without the metadata of the machine and the run."""
    notebook.metadata.language_info = NotebookNode(name="python")
    for cell in notebook.cells:
        for name in VOLATILE:
            cell.metadata.pop(name, None)
    return notebook


def main() -> None:
    """Run the notebook and write it back."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = without_traces(run_notebook(read_notebook(), Path(folder)))
    text = nbformat.writes(notebook, version=nbformat.NO_CONVERT, ensure_ascii=False)
    PAGE.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {PAGE.stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
