"""Files of torch.save: tensors by torch's restricted reader, and what lies beside them passed over where it is known."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cliptools.ground.checkpoints.file_kinds import not_read
from cliptools.ground.legible import legible

WEIGHTS = (
    "state_dict", "model_state_dict", "model", "module", "model_state", "weights", "net", "network", "params", "clip",
    "student", "base_model",
)  # fmt: skip
AVERAGED = (
    "ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema_model_state_dict",
)  # fmt: skip
"""Where people keep a running average of the weights."""
UNSAFE = "weights_only"  # in torch's messages about a pickle of other objects, which advise to load it without care
DEEPEST = 4  # dicts within dicts


class _Inert:
    """Stands for a known object beside the weights: takes whatever it would be made of, and keeps nothing."""

    def __new__(cls, *arguments: Any, **options: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _no_dict(*arguments: Any) -> dict[Any, Any]:
    """Stands for a kind of dict: torch fills plain ones alone."""
    return {}


def _no_list(*arguments: Any) -> list[Any]:
    """Stands for a kind of list."""
    return []


FILLED = {"collections.defaultdict": _no_dict, "collections.deque": _no_list}
BESIDE = (
    "argparse.Namespace", "types.SimpleNamespace",
    *(f"numpy.{core}.{name}" for core in ("core", "_core") for name in ("multiarray.scalar", "multiarray._reconstruct")),
    "numpy.dtype", "numpy.ndarray", *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    "pathlib.Path", "pathlib.PosixPath", "pathlib.PurePosixPath", "pathlib.WindowsPath", "pathlib.PureWindowsPath",
    "pathlib._local.Path", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
    "datetime.datetime", "datetime.date", "datetime.timedelta", "datetime.timezone",
    "omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode", "omegaconf.base.Metadata",
    "omegaconf.base.ContainerMetadata", "typing.Any",
    *(f"builtins.{kind}" for kind in ("int", "float", "str", "bool", "list", "dict", "complex", "range", "slice")),
)  # fmt: skip
"""Settings and counters that are pickled beside weights. None of these is ever made: _Inert stands for it."""


class Unpacked(NamedTuple):
    """Tensors of a file, and what is to be said of where they lay in it."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...]


def read_torch(path: Path, mapped: bool) -> Unpacked:
    """Read a file of torch.save.

    Args:
        mapped: Whether it is a zip file, whose tensors can be mapped into memory.

    Raises:
        ModelError: it holds objects that only code could rebuild, no tensors, or is damaged.
    """
    try:
        with torch.serialization.safe_globals(
            [*((_Inert, name) for name in BESIDE), *((make, name) for name, make in FILLED.items())]
        ):
            if path.suffix != ".safetensors":
                stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            else:  # a wrong name, by which torch.load would go
                with path.open("rb") as stream:
                    stored = torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a library says of a file that it cannot read
        raise not_read(path, _reason(path, str(error))) from None
    return unpack(stored, path)


def _reason(path: Path, message: str) -> str:
    """Why torch does not read a file."""
    names = dict.fromkeys(re.findall(r"GLOBAL (?!instruction)(\S+) (?:was|whose)", message))
    with suppress(Exception):  # of an old or damaged file the names of the message are all there are
        names |= dict.fromkeys(
            name for name in torch.serialization.get_unsafe_globals_in_checkpoint(path) if name not in {*BESIDE, *FILLED}
        )
    if names or UNSAFE in message.lower():
        shown = ", ".join(legible(name) for name in sorted(names)[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        return objects_in_it(f" ({shown}{more})" if shown else "")
    detail = (message.strip().splitlines() or [""])[0][:120]
    return f"a damaged file of torch.save{f' ({legible(detail)})' if detail else ''}: fetch it again"


def objects_in_it(shown: str = "") -> str:
    """The reason why a pickle is not read, with the objects in it."""
    return (
        f"a pickle of objects that only code could rebuild{shown}, which is never run; where it was made, save the tensors "
        "alone: torch.save(model.state_dict(), FILE)"
    )


def unpack(stored: Any, path: Path) -> Unpacked:
    """Find the weights in what a file holds: a state dict, or one within dicts under a known name.

    Raises:
        ModelError: no tensors.
    """
    notes: list[str] = []
    for _ in range(DEEPEST):
        if not isinstance(stored, Mapping):
            break
        plain = [key for key in WEIGHTS if _holds_tensors(stored.get(key))]
        averaged = [key for key in AVERAGED if _holds_tensors(stored.get(key))]
        if plain and averaged:
            notes.append(
                f"{legible(path.name)}: the weights under {plain[0]!r} are read, not their running average under {averaged[0]!r}"
            )
        elif averaged:
            notes.append(f"{legible(path.name)}: its weights are a running average, under {averaged[0]!r}")
        if plain or averaged:
            stored = stored[(plain or averaged)[0]]
            continue
        tensors = {str(key): value for key, value in stored.items() if isinstance(value, Tensor)}
        if tensors:
            return Unpacked(tensors, tuple(notes))
        break
    keys = ", ".join(legible(str(key)) for key in list(stored)[:6]) if isinstance(stored, Mapping) else type(stored).__name__
    raise not_read(path, f"no weights in it (it holds {keys or 'nothing'}); expected a state dict, or one under {WEIGHTS[0]!r}")


def _holds_tensors(value: Any, depth: int = 0) -> bool:
    """Whether a dict has tensors, or dicts of them where weights are kept."""
    if not isinstance(value, Mapping) or depth == DEEPEST:
        return False
    return any(isinstance(part, Tensor) for part in value.values()) or any(
        _holds_tensors(value.get(key), depth + 1) for key in (*WEIGHTS, *AVERAGED)
    )
