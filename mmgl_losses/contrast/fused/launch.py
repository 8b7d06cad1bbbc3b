"""What the host does for the kernels: operands, tiles, the choice of path, and the order of launches.

Nothing here waits for the device: where the range of the logits is known on the device alone, both paths are
launched, and the one that is not meant leaves at once.
"""
# Triton types a kernel as the function it is written as, not as what takes a grid, tensors and options.
# pyright: reportArgumentType=false, reportCallIssue=false

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mmgl_losses.contrast.fused import backward_kernels as gradients
from mmgl_losses.contrast.fused import forward_kernels as sums
from mmgl_losses.contrast.problem import Upstream
from mmgl_losses.contrast.ranges import Sorted

LOG2_E = 1 / math.log(2)
VECTOR = 1024  # elements of a program that works on vectors
PROGRAMS = 256  # programs that fill a large device; fewer are cut along the other side too
WAVES = 8  # times that many programs share the forward's work, so that none is left alone at the end
NARROW = 32  # columns of a mixed tile at most: what masks need is held in registers for each


class Tile(NamedTuple):
    """How a kernel cuts its work: `x` rows against `y` columns, powers of two of at least 16."""

    x: int
    y: int
    warps: int
    stages: int


def tile(kernel: str, dtype: torch.dtype, width: int, major: int) -> Tile:
    """The tile of the kernel "credit" (a square), "rows" or "weigh".

    For operands of a type and a padded width on a device of compute capability `major`: from 9 to 11 tensor cores
    read float32 operands from shared memory, the others hold three products' worth of them in registers.
    """
    if dtype == torch.float32:
        if not 9 <= major <= 11 or width > 128:
            return Tile(32, 32, 4, 2 if width <= 128 else 1)
        return Tile(64, 32, 8, 2) if kernel == "weigh" else Tile(64, 64, 8, 2)
    if width > 128:
        return Tile(64, 64, 8 if kernel == "weigh" else 4, 2)
    if kernel == "credit" and not 10 <= major <= 11:  # there a thread has a whole row: what columns need is too much
        return Tile(128, 128, 4, 2)
    return Tile(64, 64, 4, 2)


def cut_for(kernel: str, pairs: Sorted, dtype: torch.dtype) -> Tile:
    """The tile of a kernel for a problem on its device."""
    return tile(kernel, dtype, padded_width(pairs.anchors.shape[2]), major_of(pairs.anchors.device))


def major_of(device: torch.device) -> int:
    """The first number of a device's compute capability."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9


def narrow(columns: int, dtype: torch.dtype) -> int:
    """The columns of a mixed tile: half as many where operands are kept in three parts."""
    return min(NARROW // 2 if dtype == torch.float32 else NARROW, columns)


def precision(dtype: torch.dtype) -> str:
    """How tensor cores multiply: float32 as three products of tf32, which keeps float32's accuracy."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def ceil(a: int, b: int) -> int:
    """Quotient, rounded up."""
    return -(-a // b)


def padded_width(width: int) -> int:
    """The least power of two that holds a feature and that a product can run over."""
    return 1 << max(4, (width - 1).bit_length())


def pack(x: Tensor, scale: float, dtype: torch.dtype, tile: Tile) -> Tensor:
    """(G, N, D) times `scale`, rounded once to `dtype`, with zeros up to whole tiles and a power of two."""
    groups, n, width = x.shape
    rows = ceil(n, max(tile.x, tile.y)) * max(tile.x, tile.y)
    packed = x.new_zeros((groups, rows, padded_width(width)), dtype=dtype)
    torch.mul(x.detach(), scale, out=packed[:, :n, :width])
    return packed


def operands(pairs: Sorted, dtype: torch.dtype, tile: Tile) -> tuple[Tensor, Tensor]:
    """Both sides of the products, which are logits in units of log 2; one tensor where the anchors are the keys."""
    factor = pairs.scale * LOG2_E
    if pairs.keys is None:
        x = pack(pairs.anchors, factor**0.5, dtype, tile)
        return x, x
    return pack(pairs.anchors, factor, dtype, tile), pack(pairs.keys, 1.0, dtype, tile)


class Path(NamedTuple):
    """The exponentials' common shift, and whether to launch what uses it, what uses maxima instead, or both."""

    shift: Tensor  # 0-d float32, over log 2; NaN where no constant fits
    shifted: tuple[bool, ...]
    weights: dict[bool, Tensor]  # of the keys: w with a shift, log2 w with maxima


def path(pairs: Sorted, dtype: torch.dtype) -> Path:
    """Choose the shift c with which every exp(s - c) and every sum of them is a normal number.

    Normal for all pairs: c <= -log(tiny) - limit; no overflow of a sum: c >= limit + log(M) - log(max).
    """
    device, log_weights = pairs.anchors.device, pairs.log_weights
    if log_weights is None:
        weights = dict.fromkeys((True, False), pairs.anchors)  # not read
    else:
        weights = {True: log_weights.exp(), False: log_weights * LOG2_E}
    if pairs.limit is None:
        return Path(torch.full((), math.nan, device=device), (False,), weights)
    info, keys = torch.finfo(torch.float32), pairs.others
    slack = 0.1 - math.log(info.max) + math.log(max(keys.shape[1], 1))
    rounding = 1 + 2 * torch.finfo(dtype).eps
    if log_weights is None and pairs.limit.device.type == "cpu":
        reach = pairs.limit.item() * rounding
        shift = max(0.0, reach + slack)
        fits = shift <= -math.log(info.tiny) - reach
        return Path(torch.full((), shift * LOG2_E if fits else math.nan, device=device), (fits,), weights)
    reach = pairs.limit.to(device, torch.float32, non_blocking=True) * rounding
    if log_weights is not None:
        reach = reach + log_weights.abs().max()
    shift = (reach + slack).clamp(min=0.0)
    fits = shift <= -math.log(info.tiny) - reach
    return Path(torch.where(fits, shift * LOG2_E, math.nan), (True, False), weights)


class Ranges(NamedTuple):
    """What kernels read of `Sorted`, in 32 bits."""

    lo: Tensor  #: (G, rows of x): positives of x are lo <= y < hi
    hi: Tensor
    part: Tensor  #: (G,) keys that take part
    itself: Tensor  #: (G, N); `lo`, which is not read, where no anchor has a key of its own among others


def ranges(pairs: Sorted) -> Ranges:
    """The ranges of the anchors.

    Where the anchors are the keys, kernels read off one of two points what holds for both, so the ends of ranges of
    ids, which rounding may have moved, follow from their beginnings there.
    """
    lo, hi = pairs.lo, pairs.hi
    if pairs.keys is None and pairs.ranges:
        place = torch.arange(lo.shape[1], device=lo.device)
        begin = lo.where(place < pairs.count[:, None], lo.shape[1])
        hi = torch.searchsorted(begin, place.expand_as(lo).contiguous(), right=True)
    lo, hi, part = lo.int(), hi.int(), pairs.count.int().contiguous()
    return Ranges(lo, hi, part, lo if pairs.itself is None else pairs.itself.int())


def of_keys(found: Ranges, keys: int) -> Ranges:
    """The same of the keys: of which anchors, which are sorted too, each is a positive."""
    place = torch.arange(keys, device=found.lo.device, dtype=torch.int32).expand(len(found.lo), -1).contiguous()
    lo, hi = (torch.searchsorted(end, place, right=True, out_int32=True) for end in (found.hi, found.lo))
    return found._replace(lo=lo, hi=hi)


def shares(programs: int, most: int) -> int:
    """Into how many parts to cut the other side, so that there are enough programs."""
    return max(1, min(PROGRAMS // max(programs, 1), most))


def forward(pairs: Sorted, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log-sum-exp over positives and over negatives, each (G, N) float32; -inf where there are none."""
    (groups, n), m = pairs.lo.shape, pairs.others.shape[1]
    results = [torch.full(pairs.lo.shape, -torch.inf, device=pairs.lo.device) for _ in range(2)]
    if not groups * n * m:
        return results[0], results[1]
    way = path(pairs, dtype)
    credited = pairs.keys is None and way.shifted[0] and not torch.are_deterministic_algorithms_enabled()
    by_rows = way.shifted[credited:]
    if by_rows:
        results = rows(pairs, dtype, way, by_rows)
    if credited:
        totals = credit(pairs, dtype, way)
        grid = (ceil(groups * n, VECTOR),)
        sums.finish[grid](totals, way.shift, *results, groups * n, BLOCK=VECTOR)
    return results[0], results[1]


def credit(pairs: Sorted, dtype: torch.dtype, way: Path) -> Tensor:
    """Sums of exponentials (2, G, N), each pair of tiles formed once."""
    (groups, n), width = pairs.lo.shape, padded_width(pairs.anchors.shape[2])
    cut, found = cut_for("credit", pairs, dtype), ranges(pairs)
    z, _ = operands(pairs, dtype, cut)
    tiles = ceil(n, cut.x)
    chunk = max(4, ceil(groups * tiles * tiles, 2 * WAVES * PROGRAMS))  # tiles of a program
    chunks = ceil(tiles, chunk)
    totals = pairs.lo.new_zeros((2, groups, n), dtype=torch.float32)
    sums.credit[(groups * tiles * chunks,)](
        z, found.lo, found.hi, found.part, way.weights[True], way.shift, totals, n, z.shape[1], tiles, chunks, chunk,
        BLOCK=cut.x, NARROW=narrow(cut.x, dtype), D=width, WEIGHTED=pairs.log_weights is not None,
        PRECISION=precision(dtype), num_warps=cut.warps, num_stages=cut.stages,
    )  # fmt: skip
    return totals


def rows(pairs: Sorted, dtype: torch.dtype, way: Path, shifted: tuple[bool, ...]) -> list[Tensor]:
    """Log-sum-exps (G, N) over positives and over negatives, every pair formed on its own."""
    (groups, n), width = pairs.lo.shape, padded_width(pairs.anchors.shape[2])
    cut, found = cut_for("rows", pairs, dtype), ranges(pairs)
    x, y = operands(pairs, dtype, cut)
    m = pairs.others.shape[1]
    tiles = ceil(n, cut.x)
    chunks = shares(groups * tiles, ceil(m, cut.y))
    parts = [pairs.lo.new_empty((chunks, groups, n), dtype=torch.float32) for _ in range(2)]
    for constant in shifted:
        sums.rows[(groups * tiles * chunks,)](
            x, y, found.lo, found.hi, found.itself, found.part, way.weights[constant], way.shift, *parts,
            n, m, x.shape[1], y.shape[1], tiles, chunks,
            BLOCK_X=cut.x, BLOCK_Y=cut.y, NARROW=narrow(cut.y, dtype), D=width, SELF=self_kind(pairs),
            WEIGHTED=pairs.log_weights is not None, SHIFTED=constant, PRECISION=precision(dtype), num_warps=cut.warps,
            num_stages=cut.stages,
        )  # fmt: skip
    return [part.logsumexp(0) if chunks > 1 else part[0] for part in parts]


def self_kind(pairs: Sorted) -> str:
    """Which key is an anchor itself: "same" row, "given" as an index, or "none"."""
    return "same" if pairs.keys is None else "none" if pairs.itself is None else "given"


def backward(
    pairs: Sorted, dtype: torch.dtype, upstream: Upstream, needed: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the anchors and of the keys by the log-sum-exps, float32, each where it is `needed`."""
    (groups, n), m = pairs.lo.shape, pairs.others.shape[1]
    if not groups * n * m:
        return torch.zeros_like(pairs.anchors), None if pairs.keys is None else torch.zeros_like(pairs.keys)
    way, gain = path(pairs, dtype), 2.0**14 if dtype == torch.float16 else 1.0
    p, q = (x.float().contiguous() for x in upstream.gradients)
    largest = torch.maximum(torch.linalg.vector_norm(p, torch.inf), torch.linalg.vector_norm(q, torch.inf))
    width = padded_width(pairs.anchors.shape[2])
    cut = cut_for("weigh", pairs, dtype)
    x, y = operands(pairs, dtype, cut)
    found = ranges(pairs)
    # Of each gradient: x and y, whether x are anchors (W) and keys (its transpose), rows of x and of y, and y's factor
    # over that of the logits.
    sides = [(x, y, True, True, n, n, (LOG2_E / pairs.scale) ** 0.5)]
    if pairs.keys is not None:
        sides = [(x, y, True, False, n, m, 1 / pairs.scale), (y, x, False, True, m, n, LOG2_E)]
    # Tensors of their own: Triton compiles kernels anew where memory does not begin at a round address.
    factors = {
        shifted: [pairs.lo.new_empty((2, groups, n), dtype=torch.float32) for _ in range(2)] for shifted in way.shifted
    }
    for shifted, (factor, log) in factors.items():
        gradients.factors[(ceil(groups * n, VECTOR),)](
            p, q, *upstream.logsumexps, way.shift, largest, factor, log, groups * n,
            BLOCK=VECTOR, GAIN=gain, SHIFTED=shifted,
        )  # fmt: skip
    grads: list[Tensor | None] = [None, None]
    for i, (a, b, anchors, keys, size, other, scale) in enumerate(sides):
        if not needed[i]:
            continue
        tiles, of_x = ceil(size, cut.x), found if anchors else of_keys(found, m)
        chunks = shares(groups * tiles, ceil(other, cut.y))
        parts = a.new_empty((chunks, groups, size, pairs.anchors.shape[2]), dtype=torch.float32)
        for shifted, (factor, log) in factors.items():
            gradients.weigh[(groups * tiles * chunks,)](
                a, b, of_x.lo, of_x.hi, of_x.itself, factor, log, of_x.part, way.weights[shifted], way.shift,
                largest, parts, n, m, a.shape[1], b.shape[1], tiles, chunks, 1 / (scale * gain),
                BLOCK_X=cut.x, BLOCK_Y=cut.y, NARROW=narrow(cut.y, dtype), D=width, WIDTH=parts.shape[3], ROWS=anchors,
                COLUMNS=keys, SELF=self_kind(pairs), WEIGHTED=pairs.log_weights is not None, SHIFTED=shifted,
                PRECISION=precision(dtype), num_warps=cut.warps, num_stages=cut.stages,
            )  # fmt: skip
        grads[i] = parts.sum(0) if chunks > 1 else parts[0]
    return grads[0], grads[1]
