"""Results kept between runs, by content: a damaged, read-only or missing cache costs time, never the result."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cliptools.ground.errors import CliptoolsError
from cliptools.ground.output import whole_file
from cliptools.ground.progress import warn_once
from cliptools.ground.provenance import KEY, canonical, digest
from cliptools.ground.strict_json import parse


def cache_dir() -> Path:
    """The directory CLIPTOOLS_CACHE names, else the user's cache directory."""
    named = os.environ.get("CLIPTOOLS_CACHE")
    if named:
        return Path(named)
    from platformdirs import user_cache_path

    return user_cache_path("cliptools", appauthor=False)


def cached(
    kind: str, key: str, shape: tuple[int, ...], compute: Callable[[], Float32[np.ndarray, "..."]]
) -> Float32[np.ndarray, "..."]:
    """The array kept under this key, else the computed one, which is then kept.

    Several runs may share a cache: files appear whole, under names that say their content.

    Args:
        kind: A subdirectory.
        key: Digest of everything the array depends on.
        shape: What the array must look like; -1 where any size is right.
        compute: Called where the cache has nothing usable.
    """
    path = cache_dir() / kind / f"{key}.safetensors"
    kept = _recall(path, key, shape)
    if kept is not None:
        return kept
    value = np.ascontiguousarray(compute())
    _keep(path, key, value)
    return value


def _recall(path: Path, key: str, shape: tuple[int, ...]) -> Float32[np.ndarray, "..."] | None:
    """The array in the file if it is whole and what was asked for."""
    try:
        with safe_open(path, framework="numpy") as file:
            said = parse(file.metadata()[KEY])
            value = file.get_tensor("value")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
    fits = value.dtype == np.float32 and len(value.shape) == len(shape)
    fits = fits and all(want in (-1, size) for want, size in zip(shape, value.shape, strict=True))
    return value if fits and said == _seal(key, value) and np.isfinite(value).all() else None


def _keep(path: Path, key: str, value: Float32[np.ndarray, "..."]) -> None:
    """Write the file; where that is not possible, say so once a run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream:
            stream.write(save({"value": value}, metadata={KEY: canonical(_seal(key, value))}))
    except (OSError, CliptoolsError) as error:
        warn_once("cache", f"nothing is kept in the cache, each run computes anew: {error}")


def _seal(key: str, value: Float32[np.ndarray, "..."]) -> dict[str, str]:
    """What must be true of a whole file: its own key, and the hash of its bytes."""
    return {"key": key, "sha256": digest(value.tobytes())}
