"""The environment in which the tests run, which they must leave unchanged."""

import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

INSTALLED = (".dist-info", ".egg-info", ".egg-link", ".pth")


class Environment(NamedTuple):
    """Paths of installed packages and programs with their times of change."""

    packages: frozenset[tuple[str, int]]
    programs: frozenset[tuple[str, int]]

    def changes_since(self, earlier: "Environment") -> list[str]:
        """Return the paths of packages and programs that are new, removed or changed."""
        return sorted({path for now, before in zip(self, earlier, strict=True) for path, _ in now ^ before})


def this_environment(packages: Iterable[Path] = (), programs: Path | None = None) -> Environment:
    """Return the state of an environment; without folders of packages and programs, of this interpreter's environment."""
    folders = list(packages) or [Path(folder) for folder in sys.path if folder.endswith("-packages")]
    return Environment(
        _times(path for folder in folders for path in folder.glob("*") if path.suffix in INSTALLED),
        _times((programs or Path(sysconfig.get_path("scripts"))).glob("*")),
    )


def _times(paths: Iterable[Path]) -> frozenset[tuple[str, int]]:
    return frozenset((str(path), path.lstat().st_mtime_ns) for path in paths)
