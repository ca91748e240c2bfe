"""Matching pursuit beside scikit-learn's and batched-omp's, and the text tower cut beside uncut, in one run.

    python benchmarks/decompose.py                            # 3,072 units × 30,000 texts × 512, m = 32 and 128; 768 wide, m = 64
    python benchmarks/decompose.py --m 32 --scikit-units 40   # as much of it as one has time for
    python benchmarks/decompose.py --tower --uncut-words 2000 --m
    python benchmarks/decompose.py --device cuda              # all 147,456 pairs, and batched-omp there

Each row was run on the units it names; seconds for all are a projection wherever these are fewer, and it says so. Of
scikit-learn's modes (float32 and float64, one thread and all, Gram matrix or none), the fastest on a few units then runs on the
sample, and the fastest that takes the same texts, if that is another. batched-omp is an old name of
orthogonal-matching-pursuit-gpu; it stays outside the project:

    pip install --no-deps --target /tmp/batched-omp batched-omp orthogonal-matching-pursuit-gpu
    PYTHONPATH=/tmp/batched-omp python benchmarks/decompose.py
"""

import argparse
import itertools
import math
import resource
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import describe, save
from runs import Row, arguments, out_of
from torch import Tensor

from cliptools.analysis.pursuit import fastest_dtype, pursue, text_space
from cliptools.models.load import load_model
from cliptools.models.text_encoder import encode_tokens, tokenizer_of
from cliptools.text.vocabularies import load_pool

MINUTES = 15
WIDTH, PAIRS, PAIRS_WIDTH, PAIRS_M = 512, 147_456, 768, 64
GOALS = {32: 10, 128: 20}  # times as fast as scikit-learn's fastest mode, on two cores
GRAM_GB = 9  # what scikit-learn needs with the Gram matrix of 30,000 texts in float32, and a copy for each unit
INSTALL = (
    "batched-omp is not there: pip install --no-deps --target DIR batched-omp orthogonal-matching-pursuit-gpu, PYTHONPATH=DIR"
)


def related(units: int, texts: int, width: int) -> tuple[Tensor, Tensor]:
    """Directions and texts that share strong themes, as words do: [unit, width], [text, width], float32."""
    draw = torch.Generator().manual_seed(0)
    themes = torch.randn(width // 8, width, generator=draw)

    def drawn(count: int, noise: float) -> Tensor:
        rows = torch.randn(count, len(themes), generator=draw) @ themes / math.sqrt(len(themes))
        return torch.nn.functional.normalize(rows + noise * torch.randn(count, width, generator=draw), dim=1)

    return drawn(units, 0.3), text_space(drawn(texts, 1.0))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result, also of a GPU's."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def row_of(m: int, what: str, units: int, seconds: float, ours: float | None, total: int) -> Row:
    """A row: seconds a unit, and the ratio to ours."""
    each = seconds / units
    row: Row = {"m": m, "what": what, "units": units, "ms a unit": round(1e3 * each, 3)}
    row |= {"times ours": round(each / ours, 2) if ours else 1.0, f"seconds for {total:,}": round(each * total, 1)}
    return row | {"projected": "yes" if units < total else ""}


def agreement(chosen: Iterable[list[int]], coefficients: Any) -> str:
    """How many units have the same texts."""
    pairs = [set(ours) - {-1} == set(np.flatnonzero(row).tolist()) for ours, row in zip(chosen, coefficients, strict=True)]
    return f"{sum(pairs)} of {len(pairs)}"


def scikit(targets: Tensor, atoms: Tensor, m: int, threads: int, dtype: Any, gram: bool) -> tuple[float, Any]:
    """Seconds of scikit-learn's pursuit, and its coefficients, [unit, text]."""
    from sklearn.linear_model import orthogonal_mp
    from threadpoolctl import threadpool_limits

    X, y = atoms.numpy().astype(dtype).T, targets.numpy().astype(dtype).T
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        seconds, gamma = timed(lambda: orthogonal_mp(X, y, n_nonzero_coefs=m, precompute=gram))
        if gram:  # which is made once: that of the other units is the slope's
            seconds -= timed(lambda: orthogonal_mp(X, y[:, :1], n_nonzero_coefs=1, precompute=True))[0]
    return max(seconds, 0.0), gamma.reshape(len(atoms), -1).T


def scikit_rows(targets: Tensor, atoms: Tensor, m: int, ours: float, word: Tensor, options: argparse.Namespace) -> list[Row]:
    """Every mode on a few units, then the fastest on the sample."""
    few, rows, modes = targets[: options.probe_units], [], []
    room = free_gb() > GRAM_GB
    for dtype, threads, gram in itertools.product((np.float32, np.float64), sorted({1, options.threads}), (False, True)):
        if gram and (not room or dtype is np.float64):  # 7.2 GB and as much again
            continue
        seconds, gamma = scikit(few, atoms, m, threads, dtype, gram)
        name = f"scikit-learn, {np.dtype(dtype).name}, {threads} thread{'s' * (threads > 1)}{', Gram' * gram}"
        row = row_of(m, name, len(few), seconds, ours, options.units)
        same = agreement(word[: len(few)].tolist(), gamma)
        modes.append((seconds, name, (threads, dtype, gram), same == f"{len(few)} of {len(few)}"))
        rows.append(row | {"same texts": same})
        print(rows[-1], flush=True)
    fastest = min(modes, key=lambda each: each[0])
    exact = min((mode for mode in modes if mode[3]), key=lambda each: each[0], default=fastest)
    chosen = {"the fastest": fastest} | ({} if exact is fastest else {"the fastest that is exact": exact})
    for what, (_, name, mode, _) in chosen.items():
        seconds, gamma = scikit(targets[: options.scikit_units], atoms, m, *mode)
        row = row_of(m, f"{name}: {what}", len(gamma), seconds, ours, options.units)
        rows.append(row | {"same texts": agreement(word[: len(gamma)].tolist(), gamma), "goal": GOALS.get(m)})
    return rows


def batched_rows(targets: Tensor, atoms: Tensor, m: int, ours: float, word: Tensor, options: argparse.Namespace) -> list[Row]:
    """batched-omp's two algorithms that run anywhere, Gram matrix not counted."""
    try:
        from orthogonal_matching_pursuit_gpu import run_omp
    except ImportError:
        print(INSTALL)
        return []
    rows = []
    for algorithm in ("naive", "v0"):
        few, many = 1, min(options.batched_units, len(targets))

        def call(units: int, algorithm: str = algorithm) -> Any:
            same = {
                "precompute": True if algorithm == "v0" else None,
                "normalize": False,
                "fit_intercept": False,
                "alg": algorithm,
            }
            return run_omp(atoms.T, targets[:units], m, **same)

        short, long = timed(partial(call, few)), timed(partial(call, many))
        units, seconds = (many - few, long[0] - short[0]) if many > few else (many, long[0])
        row = row_of(m, f"batched-omp, {algorithm}", units, seconds, ours, options.units)
        rows.append(row | {"same texts": agreement(word[:many].tolist(), long[1].cpu().numpy())})
        print(rows[-1], flush=True)
    return rows


def free_gb() -> float:
    """Memory that can be had now."""
    with Path("/proc/meminfo").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e6


def pursuit_rows(m: int, options: argparse.Namespace) -> list[Row]:
    """Ours, scikit-learn's and batched-omp's."""
    targets, atoms = related(options.units, options.texts, WIDTH)
    there, pool = targets.to(options.device), atoms.to(options.device)
    pursue(there[:8], pool, 2)  # the first call tries which arithmetic is fastest
    seconds, found = timed(lambda: pursue(there, pool, m))
    ours, word = seconds / options.units, found.word.cpu()
    screening = str(fastest_dtype(there.device)).removeprefix("torch.")
    rows = [row_of(m, f"clip-decompose, {screening} screening, {options.device}", options.units, seconds, None, options.units)]
    print(rows[-1], flush=True)
    if options.scikit_units:
        rows += scikit_rows(targets, atoms, m, ours, word, options)
    return rows + batched_rows(there, pool, m, ours, word, options)


def pairs_rows(options: argparse.Namespace) -> list[Row]:
    """Ours for RN50x16's 147,456 pairs: a sample of them on a processor, all on a GPU."""
    count = options.pairs or (512 if options.device == "cpu" else PAIRS)
    r, t = (each.to(options.device) for each in related(count, options.texts, PAIRS_WIDTH))
    pursue(r[:8], t, 2)
    seconds, _ = timed(lambda: pursue(r, t, PAIRS_M))
    return [row_of(PAIRS_M, f"clip-decompose, {options.device}", count, seconds, None, PAIRS)]


def tower_rows(options: argparse.Namespace) -> list[Row]:
    """Seconds of a random ViT-B-32's text tower on the most common words, cut and uncut."""
    loaded = load_model("ViT-B-32", "random", device=options.device)
    words = load_pool("words30k").texts[: options.words]
    seconds, tokens = timed(lambda: tokenizer_of(loaded)(words))
    rows: list[Row] = [{"what": "tokenizer", "words": len(words), "seconds": round(seconds, 1)}]
    encode_tokens(loaded, tokens[:256])
    seconds, short = timed(lambda: encode_tokens(loaded, tokens))
    rows.append({"what": "tower, cut", "words": len(words), "seconds": round(seconds, 1)})
    print(rows[-1], flush=True)
    sample = tokens[: options.uncut_words]
    seconds, long = timed(lambda: encode_tokens(loaded, sample, cut=False))
    difference = f"{float((short[: len(sample)] - long).abs().max()):.1e}"
    rows.append({"what": "tower, uncut", "words": len(sample), "seconds": round(seconds, 1), "largest difference": difference})
    seconds, _ = timed(lambda: encode_tokens(loaded, sample))
    return [*rows, {"what": "tower, cut", "words": len(sample), "seconds": round(seconds, 1)}]


def parse() -> argparse.Namespace:
    """The options."""
    parser = arguments(__doc__)
    parser.add_argument("--m", type=int, nargs="*", default=[32, 128], help="texts a unit; none leaves that table out")
    parser.add_argument("--units", type=int, default=3072, help="units of our run")
    parser.add_argument("--texts", type=int, default=30_000)
    parser.add_argument("--probe-units", type=int, default=8, help="units on which scikit-learn's modes are tried")
    parser.add_argument("--scikit-units", type=int, default=500, help="units for scikit-learn's fastest mode; 0 leaves it out")
    parser.add_argument(
        "--batched-units", type=int, default=64, help="units for batched-omp, which holds m × texts numbers for each"
    )
    parser.add_argument("--pairs", type=int, help="pairs 768 wide [default: 512 on a processor, all on a GPU]")
    parser.add_argument("--tower", action="store_true", help="also the text tower")
    parser.add_argument("--words", type=int, default=30_000, help="words through the cut tower")
    parser.add_argument("--uncut-words", type=int, default=2000, help="the first so many of them through the uncut tower")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    if options.quick:
        options.units, options.texts, options.m, options.pairs, options.tower = 48, 2000, [8], 16, False
        options.probe_units, options.scikit_units, options.batched_units = 2, 8, 8
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    found: dict[str, list[Row]] = {}
    if options.m:
        title = f"pursuit, {options.units} units, {options.texts} texts of width {WIDTH}"
        found[title] = [row for m in options.m for row in pursuit_rows(m, options)]
    found[f"neuron-head pairs, {options.texts} texts of width {PAIRS_WIDTH}"] = pairs_rows(options)
    if options.tower:
        found["text tower of ViT-B-32, random weights"] = tower_rows(options)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    save(out_of(options), "decompose", describe(), {"device": options.device, "peak GB": peak}, found)


if __name__ == "__main__":
    main()
