"""Which text of a large pool correlates most with a residual: found coarsely, decided exactly.

Nearly all the work of matching pursuit is one product a step, the pool times the residuals. It is made in the fastest
arithmetic at hand (bfloat16 where the processor has it) and only tells which blocks of texts may hold the largest
correlation: rounding t to t̃ and r to r̃ moves ⟨t, r⟩ by at most ‖t‖‖r − r̃‖ + ‖t − t̃‖‖r̃‖, and both are known. The few
blocks within that reach are computed again in the residuals' own type. So the choice is that of the full precision,
whatever the product was made in.
"""

import functools
import time
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

BLOCK = 16  # texts that are screened together: enough to shrink the search, few enough to compute again
ROWS = 2048  # texts in one product: its result stays in the cache until it is reduced
PAIRS = {"cpu": 128, "cuda": 8192}  # blocks computed again at a time: 4 MB at width 512 stays in a processor's cache


@dataclass(frozen=True)
class Screen:
    """A pool of texts laid out for the search."""

    atoms: Float[Tensor, "block _ d"]
    """The texts, in blocks; the last block is filled up with zeros."""
    coarse: Float[Tensor, "padded d"]
    """The same, in the type of the screening product."""
    count: int
    norm: float
    """The largest ‖t‖."""
    rounding: float
    """The largest ‖t − t̃‖."""

    @classmethod
    def of(cls, atoms: Float[Tensor, "text d"], dtype: torch.dtype) -> "Screen":
        """Lay out a pool whose products will be made in `dtype`."""
        count, d = atoms.shape
        padded = F.pad(atoms, (0, 0, 0, -count % BLOCK))
        coarse = padded.to(dtype)
        pieces = zip(padded.split(ROWS), coarse.split(ROWS), strict=True)
        rounding = max(float((t - c.to(t.dtype)).norm(dim=1).max()) for t, c in pieces)
        return cls(padded.view(-1, BLOCK, d), coarse, count, float(atoms.norm(dim=1).max()), rounding)

    def __getitem__(self, text: Int[Tensor, " unit"]) -> Float[Tensor, "unit d"]:
        return self.atoms.flatten(0, 1).index_select(0, text)


def strongest(screen: Screen, r: Float[Tensor, "unit d"], active: Bool[Tensor, " unit"]) -> Int[Tensor, " unit"]:
    """For each active unit the text t of largest |⟨t, r⟩|, the first of equal ones; 0 for the others."""
    peaks = _block_peaks(screen, r)
    may = (peaks >= _least_peak(screen, r, peaks)) & active  # (block, unit)
    block, unit = may.nonzero().unbind(1)
    values, texts = [], []
    pairs = PAIRS.get(r.device.type, PAIRS["cpu"])
    for b, n in zip(block.split(pairs), unit.split(pairs), strict=True):
        c = torch.bmm(r[n, None], screen.atoms.index_select(0, b).mT).squeeze(1).abs()  # (pair, BLOCK)
        value, place = c.max(dim=1)
        values.append(value)
        texts.append(b * BLOCK + place)
    value, text = torch.cat(values), torch.cat(texts)  # (pair)
    best = r.new_zeros(len(r)).scatter_reduce(0, unit, value, "amax")
    text = torch.where(value == best[unit], text, screen.count)
    first = unit.new_full((len(r),), screen.count).scatter_reduce(0, unit, text, "amin")
    return first.masked_fill(first >= screen.count, 0)


def _block_peaks(screen: Screen, r: Float[Tensor, "unit d"]) -> Float[Tensor, "block unit"]:
    """The largest |⟨t̃, r̃⟩| in each block."""
    coarse = r.to(screen.coarse.dtype).T  # (d, unit)
    product = coarse.new_empty(min(ROWS, len(screen.coarse)), len(r))
    peaks = coarse.new_empty(len(screen.atoms), len(r))
    for t, peak in zip(screen.coarse.split(ROWS), peaks.split(ROWS // BLOCK), strict=True):
        c = torch.mm(t, coarse, out=product[: len(t)]).abs_()
        torch.amax(c.view(-1, BLOCK, len(r)), dim=1, out=peak)
    return peaks


def _least_peak(screen: Screen, r: Float[Tensor, "unit d"], peaks: Float[Tensor, "block unit"]) -> Float[Tensor, " unit"]:
    """How large a block's peak must be for the block to hold, perhaps, the largest correlation."""
    coarse = r.to(peaks.dtype).to(r.dtype)
    norm = r.norm(dim=1)
    unit_roundoff = torch.finfo(peaks.dtype).eps / 2
    sums = torch.promote_types(peaks.dtype, torch.float32), r.dtype  # of the screening products, and of those made again
    summing = r.shape[1] * sum(torch.finfo(dtype).eps for dtype in sums) * screen.norm * norm
    reach = screen.norm * (r - coarse).norm(dim=1) + screen.rounding * coarse.norm(dim=1) + summing
    top = peaks.amax(dim=0).to(r.dtype)
    return (top / (1 + unit_roundoff) - 2 * reach) * (1 - unit_roundoff)  # the product's result is itself rounded


@functools.cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where products in it are faster than in float32, which only a trial can tell on a CPU."""
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
