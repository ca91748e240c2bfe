"""Matching pursuit beside scikit-learn's, and the text tower cut beside uncut, in one run.

    python benchmarks/decompose.py                                # m = 32; the tower on 2,000 words
    python benchmarks/decompose.py --m 32 128 --words 30000       # the tower on all words, uncut as well: long
    python benchmarks/decompose.py --words 30000 --uncut-words 2000

Whatever is printed was run in full: nothing is scaled up from a part. Seconds per unit are those of the units named.
"""

import argparse
import math
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from machine import describe, save
from torch import Tensor

from cliptools.ground.models import load_model
from cliptools.ground.text_tower import encode_tokens, tokenizer_of
from cliptools.ground.texts import load_pool
from cliptools.methods.pursuit import pursue
from cliptools.methods.screening import fastest_dtype
from cliptools.methods.text_space import text_space

TEXTS, WIDTH = 30_000, 512
GOAL = 8


def related(units: int) -> tuple[Tensor, Tensor]:
    """Directions and texts that share strong themes, as words do: [unit, 512], [30000, 512], float32."""
    draw = torch.Generator().manual_seed(0)
    themes = torch.randn(WIDTH // 8, WIDTH, generator=draw)

    def drawn(count: int, noise: float) -> Tensor:
        rows = torch.randn(count, len(themes), generator=draw) @ themes / math.sqrt(len(themes))
        return torch.nn.functional.normalize(rows + noise * torch.randn(count, WIDTH, generator=draw), dim=1)

    return drawn(units, 0.3), text_space(drawn(TEXTS, 1.0))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def scikit(targets: Tensor, atoms: Tensor, m: int, threads: int, dtype: Any) -> tuple[float, np.ndarray]:
    """Seconds of scikit-learn's pursuit without a Gram matrix, and its coefficients, [text, unit]."""
    from sklearn.linear_model import orthogonal_mp
    from threadpoolctl import threadpool_limits

    X, y = atoms.numpy().astype(dtype).T, targets.numpy().astype(dtype).T
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return timed(lambda: orthogonal_mp(X, y, n_nonzero_coefs=m, precompute=False))


def pursuit_rows(m: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds a unit of ours and of each of scikit-learn's modes, and how many supports are the same as ours."""
    targets, atoms = related(options.units)
    pursue(targets[:8], atoms, 2)  # the first call tries which arithmetic is fastest
    seconds, found = timed(lambda: pursue(targets, atoms, m))
    ours = seconds / options.units
    screening = str(fastest_dtype(targets.device)).removeprefix("torch.")
    rows = [{"m": m, "what": f"clip-decompose, {screening} screening", "units": options.units, "ms a unit": round(1e3 * ours, 2)}]
    rows[0] |= {"times ours": 1.0, "same supports": None}
    few = options.scikit_units
    for dtype in (np.float32, np.float64):
        for threads in sorted({1, options.threads}):
            seconds, gamma = scikit(targets[:few], atoms, m, threads, dtype)
            pairs = zip(found.word[:few].tolist(), gamma.T, strict=True)
            same = sum(set(word) == set(np.flatnonzero(row).tolist()) for word, row in pairs)
            what = f"scikit-learn, {np.dtype(dtype).name}, {threads} BLAS thread{'s' * (threads > 1)}"
            row = {"m": m, "what": what, "units": few, "ms a unit": round(1e3 * seconds / few, 2)}
            rows.append(row | {"times ours": round(seconds / few / ours, 1), "same supports": f"{same} of {few}"})
            print(rows[-1], flush=True)
    return rows


def tower_rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of a random ViT-B-32's text tower on the most common words, cut and uncut."""
    loaded = load_model("ViT-B-32", "random", device="cpu")
    words = load_pool("words30k").texts[: options.words]
    seconds, tokens = timed(lambda: tokenizer_of(loaded)(words))
    rows = [{"what": "tokenizer", "words": len(words), "seconds": round(seconds, 1), "largest difference": None}]
    encode_tokens(loaded, tokens[:256])
    seconds, short = timed(lambda: encode_tokens(loaded, tokens))
    rows.append({"what": "tower, cut", "words": len(words), "seconds": round(seconds, 1), "largest difference": None})
    print(rows[-1], flush=True)
    sample = tokens[: options.uncut_words or len(tokens)]
    seconds, long = timed(lambda: encode_tokens(loaded, sample, cut=False))
    difference = f"{float((short[: len(sample)] - long).abs().max()):.1e}"
    rows.append({"what": "tower, uncut", "words": len(sample), "seconds": round(seconds, 1), "largest difference": difference})
    if len(sample) < len(tokens):
        seconds, _ = timed(lambda: encode_tokens(loaded, sample))
        rows.append({"what": "tower, cut", "words": len(sample), "seconds": round(seconds, 1), "largest difference": None})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--m", type=int, nargs="+", default=[32], help="texts a unit")
    parser.add_argument("--units", type=int, default=1024, help="units of our run")
    parser.add_argument("--scikit-units", type=int, default=40, help="the first so many of them, for scikit-learn")
    parser.add_argument("--words", type=int, default=2000, help="words through the cut tower, at most 30000")
    parser.add_argument("--uncut-words", type=int, help="the first so many of them through the uncut tower [default: all]")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tables = {f"pursuit, {TEXTS} texts of width {WIDTH}": [row for m in options.m for row in pursuit_rows(m, options)]}
    tables["text tower of ViT-B-32, random weights"] = tower_rows(options)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    save("decompose", describe(), {"goal, times faster than scikit-learn's fastest": GOAL, "peak GB": peak}, tables)


if __name__ == "__main__":
    main()
