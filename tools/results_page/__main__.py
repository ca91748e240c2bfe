"""Write the page of results of a checkout, and generated parts of other pages: python -m tools.results_page [ROOT]."""

import sys
from pathlib import Path

import click
import jinja2

from examples.result_tables import TableError
from tools.results_page.page import PAGE, fill_parts, pages_with_parts, render


@click.command()
@click.argument("root", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(root: Path) -> None:
    """Write docs/results.md of the checkout at ROOT, and parts of other pages, from templates, tables and the models' figures."""
    try:
        texts = {root / PAGE: render(root)}
        texts |= {page: fill_parts(root, page.read_text(encoding="utf-8")) for page in pages_with_parts(root)}
    except (TableError, jinja2.TemplateError) as error:
        sys.exit(f"docs/source: {error}")
    for page, text in texts.items():
        page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
