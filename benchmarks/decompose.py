"""Compare matching pursuit with scikit-learn and batched-omp, and the shortened text tower with the full one, in one run.

    python benchmarks/decompose.py                            # 3,072 units × 30,000 texts × 512, m = 32 and 128; 768 wide, m = 64
    python benchmarks/decompose.py --m 32 --scikit-units 40   # a shorter run
    python benchmarks/decompose.py --tower --uncut-words 2000 --m
    python benchmarks/decompose.py --device cuda              # all 147,456 pairs, and batched-omp there

Each row names the number of units it was run on. If these are fewer than all, the seconds for all units are a projection, which
the row states. All modes of scikit-learn (float32 and float64, one thread and all threads, with and without Gram matrix) run on a
few units. The fastest mode, and the fastest mode that chooses the same texts if it is another one, then run on the sample.
batched-omp is an old name of orthogonal-matching-pursuit-gpu; it is not a dependency of the project:

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
GOALS = {32: 10, 128: 20}  # ratio to scikit-learn's fastest mode, on two cores
GRAM_GB = 9  # memory of scikit-learn with the Gram matrix of 30,000 texts in float32, and a copy for each unit
INSTALL = (
    "batched-omp is not installed: pip install --no-deps --target DIR batched-omp orthogonal-matching-pursuit-gpu, PYTHONPATH=DIR"
)


def related(units: int, texts: int, width: int) -> tuple[Tensor, Tensor]:
    """Return directions and texts that share strong themes, as words do: [unit, width], [text, width], float32."""
    draw = torch.Generator().manual_seed(0)
    themes = torch.randn(width // 8, width, generator=draw)

    def drawn(count: int, noise: float) -> Tensor:
        rows = torch.randn(count, len(themes), generator=draw) @ themes / math.sqrt(len(themes))
        return torch.nn.functional.normalize(rows + noise * torch.randn(count, width, generator=draw), dim=1)

    return drawn(units, 0.3), text_space(drawn(texts, 1.0))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the seconds and the result of a function, also on a GPU."""
    start = time.perf_counter()
    result = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def row_of(m: int, what: str, units: int, seconds: float, ours: float | None, total: int) -> Row:
    """Return a row with the time per unit and the ratio to clip-decompose."""
    each = seconds / units
    row: Row = {"m": m, "what": what, "units": units, "ms a unit": round(1e3 * each, 3)}
    row |= {"times ours": round(each / ours, 2) if ours else 1.0, f"seconds for {total:,}": round(each * total, 1)}
    return row | {"projected": "yes" if units < total else ""}


def agreement(chosen: Iterable[list[int]], coefficients: Any) -> str:
    """Return the number of units with the same texts, as text."""
    pairs = [set(ours) - {-1} == set(np.flatnonzero(row).tolist()) for ours, row in zip(chosen, coefficients, strict=True)]
    return f"{sum(pairs)} of {len(pairs)}"


def scikit(targets: Tensor, atoms: Tensor, m: int, threads: int, dtype: Any, gram: bool) -> tuple[float, Any]:
    """Return the seconds of scikit-learn's pursuit, and its coefficients, [unit, text]."""
    from sklearn.linear_model import orthogonal_mp
    from threadpoolctl import threadpool_limits

    X, y = atoms.numpy().astype(dtype).T, targets.numpy().astype(dtype).T
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        seconds, gamma = timed(lambda: orthogonal_mp(X, y, n_nonzero_coefs=m, precompute=gram))
        if gram:  # the Gram matrix is computed once for all units, so its time is subtracted
            seconds -= timed(lambda: orthogonal_mp(X, y[:, :1], n_nonzero_coefs=1, precompute=True))[0]
    return max(seconds, 0.0), gamma.reshape(len(atoms), -1).T


def scikit_rows(targets: Tensor, atoms: Tensor, m: int, ours: float, word: Tensor, options: argparse.Namespace) -> list[Row]:
    """Run every mode on a few units, and then the fastest on the sample."""
    few, rows, modes = targets[: options.probe_units], [], []
    room = free_gb() > GRAM_GB
    for dtype, threads, gram in itertools.product((np.float32, np.float64), sorted({1, options.threads}), (False, True)):
        if gram and (not room or dtype is np.float64):  # float64 needs twice 7.2 GB
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
    """Run the two algorithms of batched-omp that need no GPU; the time of the Gram matrix does not count."""
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
    """Return the available memory."""
    with Path("/proc/meminfo").open() as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 1e6


def pursuit_rows(m: int, options: argparse.Namespace) -> list[Row]:
    """Run clip-decompose's pursuit, scikit-learn and batched-omp."""
    targets, atoms = related(options.units, options.texts, WIDTH)
    device_targets, pool = targets.to(options.device), atoms.to(options.device)
    pursue(device_targets[:8], pool, 2)  # the first call measures which arithmetic is fastest
    seconds, result = timed(lambda: pursue(device_targets, pool, m))
    ours, word = seconds / options.units, result.word.cpu()
    screening = str(fastest_dtype(device_targets.device)).removeprefix("torch.")
    rows = [row_of(m, f"clip-decompose, {screening} screening, {options.device}", options.units, seconds, None, options.units)]
    print(rows[-1], flush=True)
    if options.scikit_units:
        rows += scikit_rows(targets, atoms, m, ours, word, options)
    return rows + batched_rows(device_targets, pool, m, ours, word, options)


def pairs_rows(options: argparse.Namespace) -> list[Row]:
    """Run the pursuit for RN50x16's 147,456 pairs: for a sample on a CPU, for all pairs on a GPU."""
    count = options.pairs or (512 if options.device == "cpu" else PAIRS)
    r, t = (each.to(options.device) for each in related(count, options.texts, PAIRS_WIDTH))
    pursue(r[:8], t, 2)
    seconds, _ = timed(lambda: pursue(r, t, PAIRS_M))
    return [row_of(PAIRS_M, f"clip-decompose, {options.device}", count, seconds, None, PAIRS)]


def tower_rows(options: argparse.Namespace) -> list[Row]:
    """Measure the text tower of a random ViT-B-32 on the most common words, shortened and at full length."""
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
    """Return the options."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--m", type=int, nargs="*", default=[32, 128], help="texts per unit; without a value, this table is left out"
    )
    parser.add_argument("--units", type=int, default=3072, help="units for clip-decompose")
    parser.add_argument("--texts", type=int, default=30_000)
    parser.add_argument("--probe-units", type=int, default=8, help="units on which scikit-learn's modes are tried")
    parser.add_argument("--scikit-units", type=int, default=500, help="units for scikit-learn's fastest mode; 0 leaves it out")
    parser.add_argument(
        "--batched-units", type=int, default=64, help="units for batched-omp, which stores m × texts numbers per unit"
    )
    parser.add_argument("--pairs", type=int, help="pairs of width 768 [default: 512 on a CPU, all on a GPU]")
    parser.add_argument("--tower", action="store_true", help="also the text tower")
    parser.add_argument("--words", type=int, default=30_000, help="words for the shortened tower")
    parser.add_argument("--uncut-words", type=int, default=2000, help="number of the first words for the tower at full length")
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
    tables: dict[str, list[Row]] = {}
    if options.m:
        title = f"pursuit, {options.units} units, {options.texts} texts of width {WIDTH}"
        tables[title] = [row for m in options.m for row in pursuit_rows(m, options)]
    tables[f"neuron-head pairs, {options.texts} texts of width {PAIRS_WIDTH}"] = pairs_rows(options)
    if options.tower:
        tables["text tower of ViT-B-32, random weights"] = tower_rows(options)
    peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)
    save(out_of(options), "decompose", describe(), {"device": options.device, "peak GB": peak}, tables)


if __name__ == "__main__":
    main()
