"""Which tiles of the other side need no masks, as kernels find out for a tile of rows.

The rows x of a tile have positives [lo, hi) on the other side y, with both ends ascending. So the tiles of y fall into
runs: all negatives, mixed, all positives, mixed, all negatives, and a last tile that is not full. A tile is pure if it
is whole and all its pairs are positives, or all are negatives. The other tiles are mixed; so are the tiles that hold
the rows themselves, where rows and columns are the same points.

A kernel goes through the pure tiles in one loop and through the mixed ones in another, so that the usual loop holds
nothing that masks need, in registers or in time.
"""

import triton
import triton.language as tl


@triton.jit
def clip(x, least, most):
    """X within bounds."""
    return tl.minimum(tl.maximum(x, least), most)


@triton.jit
def spans(p_lo, p_hi, first, last, end, BLOCK: tl.constexpr, SAME: tl.constexpr):
    """For rows first..last and y < end, in tiles of BLOCK: the ends of the runs, see `pure_tile` and `mixed_tile`.

    Tiles [a, b) hold a positive of some row, [p, q) only positives of all, [d0, d1) in these the rows themselves;
    `whole` tiles are full. Last come the numbers of pure and of mixed tiles. SAME: x and y are the same points.
    """
    whole = end // BLOCK
    a = tl.minimum(tl.load(p_lo + first) // BLOCK, whole)
    b = clip(tl.cdiv(tl.load(p_hi + last), BLOCK), a, whole)
    p = clip(tl.cdiv(tl.load(p_lo + last), BLOCK), a, b)
    q = clip(tl.load(p_hi + first) // BLOCK, p, b)
    d0, d1 = p, p
    if SAME:
        d0, d1 = clip(first // BLOCK, p, q), clip(last // BLOCK + 1, p, q)
    mixed = p - a + d1 - d0 + b - q
    return a, p, d0, d1, q, b, whole, whole - mixed, mixed + (whole * BLOCK < end).to(tl.int32)


@triton.jit
def pure_tile(step, a, p, d0, d1, q, b):
    """The pure tile of a step: [0, a), [p, d0), [d1, q), then from b on."""
    t = step + tl.where(step >= a, p - a, 0)
    t += tl.where(t >= d0, d1 - d0, 0)
    return t + tl.where(t >= q, b - q, 0)


@triton.jit
def mixed_tile(step, a, p, d0, d1, q, b, whole):
    """The mixed tile of a step: [a, p), [d0, d1), [q, b), then the one that is not full."""
    t = a + step
    t += tl.where(t >= p, d0 - p, 0)
    t += tl.where(t >= d1, q - d1, 0)
    return t + tl.where(t >= b, whole - b, 0)
