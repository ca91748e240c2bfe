"""Orthogonal matching pursuit: directions as sparse signed sums of texts (paper 1, arXiv 2406.04341, Sec. 4).

    r_n ≈ Σ_j γ_j^n t_j,  at most m of the γ_j^n non-zero

Each step takes the text that correlates most with the residual of r_n, then fits all texts taken so far by least squares, for
all units at once. The texts t are a vocabulary's embeddings, centred and scaled (`text_space`). Neither a Gram matrix over the
vocabulary nor a [units, texts] matrix is ever held in memory.

Nearly all the work of a step is one product, the vocabulary times the residuals. It is computed in the fastest arithmetic of the
device (bfloat16 where the processor supports it) and serves only to find the blocks of texts that may hold the largest
correlation: rounding t to t̃ and r to r̃ moves ⟨t, r⟩ by at most

    ‖t‖ ‖r − r̃‖ + ‖t − t̃‖ ‖r̃‖

and both terms are known. The few blocks within that bound are computed again in the type of the residuals. So the choice of
texts is that of full precision, whatever the type of the first product (`Screen`, `strongest`).

By hand, because scikit-learn's orthogonal_mp works through the units one by one, on the CPU.
"""

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from cliptools.console import progress
from cliptools.devices import in_halves, to_float64, to_float64_device, to_like
from cliptools.errors import TextError

Center = Literal["pool", "none"]
Normalize = Literal["texts", "dimensions"]
NEGLIGIBLE = 1e-6  # a unit-norm text whose centred norm is below this equals the mean up to rounding


def text_space(t: Float[Tensor, "text d"], center: Center = "pool", normalize: Normalize = "texts") -> Float[Tensor, "text d"]:
    """The atoms of matching pursuit, from unit-norm text embeddings (paper 1, Sec. 4, "sparse text").

    Args:
        t: Embeddings of the vocabulary's texts, each of unit norm.
        center: `pool` subtracts the mean over the vocabulary, as the paper does; `none` subtracts nothing.
        normalize: `texts` gives each centred text unit norm again, so that pursuit picks by angle. `dimensions` divides each
            embedding dimension by its norm over all texts, as the paper's public code does.

    Raises:
        TextError: centring leaves nothing, because all texts have the same embedding.
    """
    t64 = to_float64(t)
    mean = t64.mean(dim=0) if center == "pool" else torch.zeros_like(t64[0])
    centred = t64 - mean
    norm = centred.norm(dim=1, keepdim=True)  # (text, 1)
    centred = torch.where(norm > NEGLIGIBLE, centred, 0)
    if not bool(centred.any()):
        raise TextError(
            f"vocabulary: {len(t)} text(s) with the same embedding leave nothing after centring; use other texts or --center none"
        )
    scale = norm.clamp(min=NEGLIGIBLE) if normalize == "texts" else centred.norm(dim=0, keepdim=True).clamp(min=NEGLIGIBLE)
    return to_like(centred / scale, t)


BLOCK = 16  # texts screened together: enough to shrink the search, few enough to compute again
ROWS = 2048  # texts in one product, so that its result stays in the cache until it is reduced
PAIRS = {"cpu": 128, "cuda": 8192}  # (block, unit) pairs computed again at a time: 4 MB at width 512, which a CPU's cache holds


@dataclass(frozen=True)
class Screen:
    """The texts t of a vocabulary in blocks, and their rounded copy t̃ for the screening product."""

    atoms: Float[Tensor, "block _ d"]
    """t; the last block is filled up with zeros."""
    coarse: Float[Tensor, "padded d"]
    """t̃: the same texts in the type of the screening product."""
    count: int
    """Number of texts."""
    norm: float
    """The largest ‖t‖."""
    rounding: float
    """The largest ‖t − t̃‖."""

    @classmethod
    def of(cls, atoms: Float[Tensor, "text d"], dtype: torch.dtype) -> "Screen":
        """Lay out a vocabulary for screening products in `dtype`."""
        count, d = atoms.shape
        padded = F.pad(atoms, (0, 0, 0, -count % BLOCK))  # (text, d) -> (padded, d)
        coarse = padded.to(dtype)
        pieces = zip(padded.split(ROWS), coarse.split(ROWS), strict=True)
        rounding = max(float((t - c.to(t.dtype)).norm(dim=1).max()) for t, c in pieces)
        return cls(padded.view(-1, BLOCK, d), coarse, count, float(atoms.norm(dim=1).max()), rounding)

    def __getitem__(self, text: Int[Tensor, " unit"]) -> Float[Tensor, "unit d"]:
        return self.atoms.flatten(0, 1).index_select(0, text)


def strongest(screen: Screen, r: Float[Tensor, "unit d"], active: Bool[Tensor, " unit"]) -> Int[Tensor, " unit"]:
    """The text t of largest |⟨t, r⟩| for each active unit, the first of equal ones; 0 for inactive units."""
    peaks = _block_peaks(screen, r)
    candidates = (peaks >= _least_peak(screen, r, peaks)) & active  # (block, unit)
    block, unit = candidates.nonzero().unbind(1)  # (pair), (pair)
    values, texts = [], []
    pairs = PAIRS.get(r.device.type, PAIRS["cpu"])
    for b, n in zip(block.split(pairs), unit.split(pairs), strict=True):
        c = torch.bmm(r[n, None], screen.atoms.index_select(0, b).mT).squeeze(1).abs()  # (pair, BLOCK)
        value, place = c.max(dim=1)
        values.append(value)
        texts.append(b * BLOCK + place)  # (pair): numbers within the vocabulary
    value, text = torch.cat(values), torch.cat(texts)  # (pair)
    best = r.new_zeros(len(r)).scatter_reduce(0, unit, value, "amax")  # (pair) -> (unit)
    text = torch.where(value == best[unit], text, screen.count)
    first = unit.new_full((len(r),), screen.count).scatter_reduce(0, unit, text, "amin")
    return first.masked_fill(first >= screen.count, 0)


def _block_peaks(screen: Screen, r: Float[Tensor, "unit d"]) -> Float[Tensor, "block unit"]:
    """The largest |⟨t̃, r̃⟩| of each block and unit."""
    coarse = r.to(screen.coarse.dtype).T  # (d, unit)
    product = coarse.new_empty(min(ROWS, len(screen.coarse)), len(r))
    peaks = coarse.new_empty(len(screen.atoms), len(r))
    for t, peak in zip(screen.coarse.split(ROWS), peaks.split(ROWS // BLOCK), strict=True):
        c = torch.mm(t, coarse, out=product[: len(t)]).abs_()  # (text, d) @ (d, unit)
        torch.amax(c.view(-1, BLOCK, len(r)), dim=1, out=peak)  # (block, BLOCK, unit) -> (block, unit)
    return peaks


def _least_peak(screen: Screen, r: Float[Tensor, "unit d"], peaks: Float[Tensor, "block unit"]) -> Float[Tensor, " unit"]:
    """The smallest peak with which a block may still hold the largest correlation, by the bound of the module's docstring."""
    coarse = r.to(peaks.dtype).to(r.dtype)
    norm = r.norm(dim=1)
    unit_roundoff = torch.finfo(peaks.dtype).eps / 2
    sums = torch.promote_types(peaks.dtype, torch.float32), r.dtype  # types of the sums: in screening, and in the second product
    summing = r.shape[1] * sum(torch.finfo(dtype).eps for dtype in sums) * screen.norm * norm
    reach = screen.norm * (r - coarse).norm(dim=1) + screen.rounding * coarse.norm(dim=1) + summing
    top = peaks.amax(dim=0).to(r.dtype)  # (block, unit) -> (unit)
    return (top / (1 + unit_roundoff) - 2 * reach) * (1 - unit_roundoff)  # the peaks themselves are rounded


@functools.cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where its products are faster than those of float32, else float32; a CPU is timed."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(256, 256, device=device, dtype=dtype)
        trials = []
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(a, a)
            trials.append(time.perf_counter() - start)
        seconds[dtype] = min(trials)
    return min(seconds, key=lambda dtype: seconds[dtype])


ROUNDING = 1e-6  # relative growth of a residual that rounding alone may cause
DEPENDENT = 1024  # rounding steps of a text's squared norm: a text that adds less to the span depends on the texts before it
CHUNK_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}  # for the chosen texts of the units in a chunk
CHUNK_UNITS = {"cpu": 1024, "cuda": 8192}


class Pursuit(NamedTuple):
    """Result of matching pursuit; texts in the order in which they were chosen."""

    word: Int[Tensor, "unit m"]
    """Row of the vocabulary; −1 after an early end."""
    coefficient: Float[Tensor, "unit m"]
    """γ, the least-squares fit on all m texts; 0 after an early end."""
    residual: Float[Tensor, " unit"]
    """‖r − r̂‖."""
    path: Float[Tensor, "unit m"]
    """‖r − r̂‖ after each step: entry k − 1 is the residual of the pursuit with m = k."""


def pursue(
    targets: Float[Tensor, "unit d"],
    atoms: Float[Tensor, "text d"],
    m: int,
    *,
    units_chunk: int | None = None,
    screening: torch.dtype | None = None,
) -> Pursuit:
    """Orthogonal matching pursuit with at most m texts a unit (paper 1, Sec. 4).

    |⟨t, r⟩| selects the texts, so their norms matter. The pursuit of a unit ends early, as in scikit-learn, when no text
    correlates with its residual any more or the next text depends on those chosen before; a zero target gets no texts.

    Args:
        targets: The directions r; float32 or float64, the type in which texts are chosen.
        atoms: The texts t, on the same device and of the same type.
        m: Texts a unit, at least 1.
        units_chunk: Number of units in a chunk; it bounds the memory and does not change the result.
        screening: Type of the screening products; it does not change the result. Default: `fastest_dtype`.
    """
    return join(list(pursuits(targets, atoms, m, units_chunk=units_chunk, screening=screening)))


def pursuits(
    targets: Float[Tensor, "unit d"],
    atoms: Float[Tensor, "text d"],
    m: int,
    *,
    done: int = 0,
    units_chunk: int | None = None,
    screening: torch.dtype | None = None,
) -> Iterator[Pursuit]:
    """The pursuit as `pursue` computes it, one chunk of units after the other.

    Args:
        done: Number of units, the first ones, to leave out.
    """
    targets, atoms = to_float64_device(targets), to_float64_device(atoms)
    units, d = targets.shape
    steps = min(m, d, len(atoms))  # more texts would depend on each other
    chunk = units_chunk or _units_chunk(targets, steps)
    screen = Screen.of(atoms, screening or fastest_dtype(targets.device))
    chunks = ((range(start, min(start + chunk, units)), None) for start in range(done, units, chunk))
    shown = progress(chunks, "decomposing", total=units - done, step=lambda batch: len(batch[0]))

    def work(rows: Sequence[int], _: Tensor | None) -> Pursuit:
        with _full_precision():
            return _pursue(targets[rows[0] : rows[-1] + 1], screen, steps)

    for _, part in in_halves(shown, work, "units"):
        padding = (len(part.word), m - steps)  # (unit, steps) -> (unit, m)
        yield Pursuit(
            torch.cat([part.word, part.word.new_full(padding, -1)], dim=1),
            torch.cat([part.coefficient, part.coefficient.new_zeros(padding)], dim=1),
            part.residual,
            torch.cat([part.path, part.path[:, -1:].expand(padding)], dim=1),
        )
    if units == 0:
        empty = targets.new_zeros(0, m)
        yield Pursuit(empty.long(), empty, empty.sum(dim=1), empty)


def join(parts: Sequence[Pursuit]) -> Pursuit:
    """The pursuit of all units, from those of consecutive parts of them; there must be at least one part."""
    return Pursuit(*(torch.cat(column) for column in zip(*parts, strict=True)))


def refit(
    targets: Float[Tensor, "unit d"], atoms: Float[Tensor, "text d"], word: Int[Tensor, "unit k"]
) -> Float[Tensor, "unit k"]:
    """Coefficients of the least-squares fit of each target on its texts, computed in float64.

    `refit(targets, atoms, pursuit.word[:, :k])` gives the coefficients of the pursuit with m = k. Where a word is −1, the
    coefficient is 0.
    """
    chunk = max(1, _units_chunk(targets, word.shape[1]) // 4)

    def fit(rows: Sequence[int], _: Tensor | None) -> Float[Tensor, "unit k"]:
        r, index = targets[rows[0] : rows[-1] + 1], word[rows[0] : rows[-1] + 1]
        missing = to_float64_device(index < 0)
        T = to_float64(atoms[index.clamp(min=0)]).masked_fill(missing[..., None], 0)  # (unit, k, d)
        gram = T @ T.mT + torch.diag_embed(missing.double())  # (unit, k, k), the identity in rows without a text
        correlation = T @ to_float64(r)[..., None]  # (unit, k, 1)
        return torch.cholesky_solve(correlation, torch.linalg.cholesky(gram)).squeeze(2)  # (unit, k, 1) -> (unit, k)

    chunks = ((range(start, min(start + chunk, len(targets))), None) for start in range(0, len(targets), chunk))
    parts = [part for _, part in in_halves(chunks, fit, "units")]
    return to_like(torch.cat(parts), targets) if parts else targets.new_zeros(word.shape)


def fitted(
    targets: Float[Tensor, "unit d"], atoms: Float[Tensor, "text d"], word: Int[Tensor, "unit k"]
) -> Float[Tensor, "unit d"]:
    """r̂, each target's least-squares fit on its texts; no text's vector is copied for a unit."""
    gamma = refit(targets, atoms, word)
    return torch.nn.functional.embedding_bag(word.clamp(min=0), atoms, per_sample_weights=gamma.to(atoms), mode="sum")


class _State:
    """The pursuit of a chunk of units: the texts T chosen so far, their Gram matrices as L⁻¹, and the fit γ."""

    def __init__(self, targets: Float[Tensor, "unit d"], steps: int) -> None:
        units, d = targets.shape
        self.targets = targets
        self.r = targets
        self.chosen = targets.new_zeros(units, steps, d)  # T of each unit
        self.inverse = targets.new_zeros(units, steps, steps, dtype=torch.float64)  # L⁻¹ of T Tᵀ = L Lᵀ
        self.gamma = targets.new_zeros(units, steps, dtype=torch.float64)
        self.word = torch.full((units, steps), -1, device=targets.device)
        self.active = torch.ones(units, dtype=torch.bool, device=targets.device)

    def add(self, k: int, text: Int[Tensor, " unit"], t: Float[Tensor, "unit d"], least: Float[Tensor, " unit"]) -> None:
        """Take t as the k-th text of each unit, where t does not depend on the unit's texts before it.

        Args:
            least: Correlations |⟨t, r⟩| up to this are rounding.
        """
        c = (t * self.r).sum(dim=1)  # (unit)
        inverse = self.inverse[:, :k, :k]
        overlap = torch.bmm(t[:, None], self.chosen[:, :k].mT).double()  # (unit, 1, k)
        w = torch.bmm(overlap, inverse.mT)  # L⁻¹ T t
        norm2 = t.double().square().sum(dim=1)
        rho2 = norm2 - w.square().sum(dim=(1, 2))  # squared norm of what t adds to the span
        repeated = (self.word[:, :k] == text[:, None]).any(dim=1)
        # What t adds to the span must exceed the rounding of the overlaps. Where the texts span fewer dimensions than there are
        # steps, the surplus texts do not.
        new = rho2 > DEPENDENT * torch.finfo(t.dtype).eps * norm2
        self.active &= (c.abs() > least) & ~repeated & new
        rho = torch.where(self.active, rho2, 1).sqrt()
        self.inverse[:, k, :k] = -torch.bmm(w, inverse).squeeze(1) / rho[:, None]
        self.inverse[:, k, k] = 1 / rho
        self.chosen[:, k] = t
        self.word[:, k] = torch.where(self.active, text, -1)
        # r is orthogonal to the texts before, so only its part along the new direction, c/ρ, remains to be fitted.
        better = self._fit(k + 1, torch.where(self.active, c / rho, 0)[:, None] * self.inverse[:, k, : k + 1])
        self.active &= better
        self.word[~better, k] = -1

    def refine(self, k: int) -> None:
        """One step of iterative refinement: fit the part of r along the chosen texts that rounding has left."""
        exists = (self.word[:, None, :k] >= 0).double()  # (unit, 1, k)
        correlation = torch.bmm(self.r[:, None], self.chosen[:, :k].mT).double() * exists  # (unit, 1, k): T r
        inverse = self.inverse[:, :k, :k]
        self._fit(k, torch.bmm(torch.bmm(correlation, inverse.mT) * exists, inverse).squeeze(1))  # (T Tᵀ)⁻¹ T r

    def _fit(self, k: int, change: Float[Tensor, "unit k"]) -> Bool[Tensor, " unit"]:
        """Change γ where r does not grow, and return where; by rounding r grows once it lies outside the span of the texts."""
        gamma = self.gamma[:, :k] + change
        fitted = torch.bmm(gamma[:, None].to(self.r.dtype), self.chosen[:, :k]).squeeze(1)  # (unit, d)
        r = self.targets - fitted
        better = r.norm(dim=1) <= (1 + ROUNDING) * self.r.norm(dim=1)
        self.gamma[:, :k] = torch.where(better[:, None], gamma, self.gamma[:, :k])
        self.r = torch.where(better[:, None], r, self.r)
        return better


def _pursue(targets: Float[Tensor, "unit d"], screen: Screen, steps: int) -> Pursuit:
    """The pursuit of one chunk of units."""
    state = _State(targets, steps)
    path = targets.new_zeros(len(targets), steps)
    # Correlations below this are rounding: after an exact fit no others remain.
    least = 32 * torch.finfo(targets.dtype).eps * screen.norm * targets.norm(dim=1)
    done = 0
    for k in range(steps):
        text = strongest(screen, state.r, state.active)
        state.add(k, text, screen[text], least)
        path[:, k:] = state.r.norm(dim=1)[:, None]
        done = k + 1
        if not state.active.any():
            break
    state.refine(done)
    residual, words = state.r.norm(dim=1), (state.word >= 0).sum(1)  # (unit)
    whole = torch.arange(path.shape[1], device=path.device)[None] >= words[:, None] - 1  # (unit, m): all words of the unit
    return Pursuit(state.word, state.gamma.to(targets.dtype), residual, torch.where(whole, residual[:, None], path))


def _units_chunk(targets: Float[Tensor, "unit d"], steps: int) -> int:
    """Number of units in a chunk, from the bytes of T and L⁻¹ of a unit."""
    unit_bytes = steps * targets.shape[1] * targets.element_size() + steps * steps * 8
    most, room = (limit.get(targets.device.type, limit["cpu"]) for limit in (CHUNK_UNITS, CHUNK_BYTES))
    return min(max(room // unit_bytes, 16), most)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Context in which float32 products and sums are in float32, whatever the caller allows elsewhere (TF32, bfloat16 sums)."""
    cuda = torch.backends.cuda.matmul
    before = torch.get_float32_matmul_precision(), cuda.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    cuda.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cuda.allow_bf16_reduced_precision_reduction = before[1]
