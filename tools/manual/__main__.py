"""Write the manual pages, completion scripts and generated parts of documents of a checkout: python -m tools.manual [ROOT]."""

from pathlib import Path

import click

from tools.manual.api import PAGES, fill_page
from tools.manual.completion import all_scripts
from tools.manual.pages import all_pages, suite
from tools.manual.tensors import documents, fill_tables


@click.command()
@click.argument("root", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(root: Path) -> None:
    """Write the manual pages, completion scripts, references in docs/ and tables of tensors of the checkout at ROOT.

    Pages and scripts of commands that no longer exist are deleted.
    """
    _write(root / "man", "man?/*", dict(all_pages(root)))
    _write(root / "completion", "*/clip-*", dict(all_scripts(suite(root))))
    for page in PAGES:
        (root / page).write_text(fill_page(root, page), encoding="utf-8")
    for page in documents(root):
        page.write_text(fill_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


def _write(folder: Path, pattern: str, files: dict[str, str]) -> None:
    for old in folder.glob(pattern):
        if f"{old.parent.name}/{old.name}" not in files:
            old.unlink()
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
