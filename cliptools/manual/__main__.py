"""Write the manual pages of a checkout: python -m cliptools.manual [ROOT]."""

from pathlib import Path

import click

from cliptools.manual.pages import all_pages


@click.command()
@click.argument("root", default=".", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(root: Path) -> None:
    """Write man/man1 and man/man5 of the checkout at ROOT anew; pages of commands that are gone go, too."""
    pages = dict(all_pages(root))
    for old in (root / "man").glob("man?/*"):
        if f"{old.parent.name}/{old.name}" not in pages:
            old.unlink()
    for name, text in pages.items():
        path = root / "man" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
