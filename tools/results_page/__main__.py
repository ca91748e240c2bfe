"""Write the page of results of a checkout: python -m tools.results_page [ROOT]."""

import sys
from pathlib import Path

import click
import jinja2

from examples.result_tables import TableError
from tools.results_page.page import PAGE, render


@click.command()
@click.argument("root", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(root: Path) -> None:
    """Write docs/results.md of the checkout at ROOT from its template, the tables and the models' figures.json."""
    try:
        text = render(root)
    except (TableError, jinja2.TemplateError) as error:
        sys.exit(f"docs/source/results.md: {error}")
    (root / PAGE).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
