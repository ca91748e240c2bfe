"""Completion scripts of bash, zsh and fish for all commands. They call functions in completion/ that are written by hand.

click's own scripts are not used: they split values at commas (fish) and at colons (bash), offer no files in addition to names,
and do not support --option=VALUE. These scripts ask click for the same values.
"""

from collections.abc import Iterable, Iterator

ORIGIN = "# Made by python -m tools.manual; make man makes it anew."


def all_scripts(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield name below completion/ and text of each script; bash and fish look for a file with the command's name."""
    names = tuple(names)
    yield "zsh/_cliptools", f'#compdef {" ".join(names)}\n{ORIGIN}\n_cliptools_complete "$@"\n'
    for name in names:
        yield f"bash/{name}", f'{ORIGIN}\nsource "${{BASH_SOURCE[0]%/*}}/_cliptools" && _cliptools_for {name}\n'
        complete = f"complete --no-files --keep-order --command {name} --arguments '(_cliptools_complete)'"
        yield f"fish/{name}.fish", f"{ORIGIN}\n{complete}\n"
