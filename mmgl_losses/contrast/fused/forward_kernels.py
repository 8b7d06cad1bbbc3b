"""The forward kernels: sums of exponentials over positives and over negatives, without forming the pairs.

With features scaled so that a product is a logit s in units of log 2, and c one constant for all pairs,

    positives_i = c + log2 Σ_{j in P(i)} w_j 2^(s_ij - c),    negatives_i likewise over N(i).

`credit` is for anchors that are the keys: s is symmetric, so each unordered pair of tiles is formed once and credits
its rows and its columns. `rows` forms all pairs of a tile of rows and needs no atomics; it serves separate keys,
deterministic runs and, with a running maximum in place of c, logits of unknown range.

With SUM they add up the logits of the positives as well, without weights, for formulas that use them.

Both go through the pure tiles first (see `spans`), then through the mixed ones, in narrow tiles. Where the anchors are
the keys, rows from `count` on are neither; those of `x` and `y` are zeros.
A shift that is NaN says that no constant fits: the kernels that need one do nothing then, `rows` with a maximum
does its work only then, and nothing has to wait for the device to know.
"""

# To a type checker a kernel is the Python function that it looks like.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from mmgl_losses.contrast.fused.arrange_kernels import INF
from mmgl_losses.contrast.fused.spans import clip, mixed_tile, pure_tile, spans

LOOSE = ["n", "m", "tiles", "chunks", "chunk"]  # values that come and go: no kernel of their own for each


@triton.jit
def logits(b_x, p_y, i_y, o_y, o_d, D: tl.constexpr, PRECISION: tl.constexpr):
    """A tile of keys (or of anchors), and its products with the tile x: (X, Y)."""
    b_y = tl.load(p_y + tl.cast(i_y, tl.int64) * D + o_y[:, None] * D + o_d[None, :])
    return b_y, tl.dot(b_x, tl.trans(b_y), input_precision=PRECISION)


@triton.jit(do_not_specialize=LOOSE)
def credit(
    p_z, p_lo, p_hi, p_count, p_weight, p_shift, p_sums, n, padded, tiles, chunks, chunk,
    BLOCK: tl.constexpr, NARROW: tl.constexpr, D: tl.constexpr, SUM: tl.constexpr, WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to the sums (3, G, n) of both tiles of each pair: exponentials of positives, of negatives, positive logits.

    A tile of rows meets itself and the tiles behind it, the pure ones `chunk` to a program.
    """
    shift = tl.load(p_shift)
    if shift != shift:
        return
    i_c, i_t, i_g = tl.program_id(0) % chunks, tl.program_id(0) // chunks % tiles, tl.program_id(0) // chunks // tiles
    base, total = i_g.to(tl.int64) * n, (tl.num_programs(0) // chunks // tiles).to(tl.int64) * n
    p_z += i_g.to(tl.int64) * padded * D
    p_lo, p_hi, p_weight, p_sums = p_lo + base, p_hi + base, p_weight + base, p_sums + base
    count = tl.load(p_count + i_g)
    i_x = i_t * BLOCK
    if i_x >= count:
        return

    # Behind the tile: [first, q) only positives, [q, b) mixed, [b, whole) only negatives, then one that is not full.
    last = tl.minimum(i_x + BLOCK, count) - 1
    whole = count // BLOCK
    first = tl.minimum(i_t + 1, whole)
    q = clip(tl.load(p_hi + i_x) // BLOCK, first, whole)
    b = clip(tl.cdiv(tl.load(p_hi + last), BLOCK), q, whole)
    pure = whole - first - (b - q)
    mixed = 1 + b - q + ((i_t < whole) & (whole * BLOCK < count)).to(tl.int32)
    parts = tl.maximum(tl.cdiv(pure, chunk), 1)
    if i_c >= parts:
        return

    o, o_d = tl.arange(0, BLOCK), tl.arange(0, D)
    o_x = i_x + o
    m_x = o_x < count
    b_x = tl.load(p_z + i_x.to(tl.int64) * D + o[:, None] * D + o_d[None, :])
    b_positives, b_negatives = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    b_total = tl.zeros([BLOCK], tl.float32)
    if WEIGHTED:
        b_w = tl.load(p_weight + o_x, m_x, 0.0)[:, None]
    for step in range(i_c * chunk, tl.minimum((i_c + 1) * chunk, pure)):
        t = first + step + tl.where(first + step >= q, b - q, 0)
        o_y = t * BLOCK + o
        _, b_s = logits(b_x, p_z, t * BLOCK, o, o_d, D, PRECISION)
        if SUM:  # noqa: SIM102 - Triton leaves out what hangs on a constant alone
            if t < q:
                b_total += tl.sum(b_s, 1)
                tl.atomic_add(p_sums + 2 * total + o_y, tl.sum(b_s, 0), sem="relaxed")
        b_row = tl.exp2(b_s - shift)  # shares of the rows, weighted by the keys that are columns
        b_column = b_row  # and the other way round
        if WEIGHTED:
            b_column = b_row * b_w
            b_row = b_row * tl.load(p_weight + o_y)[None, :]
        b_sum = tl.sum(b_row, 1)
        b_positives += tl.where(t < q, b_sum, 0.0)
        b_negatives += tl.where(t < q, 0.0, b_sum)
        tl.atomic_add(p_sums + tl.where(t < q, 0, total) + o_y, tl.sum(b_column, 0), sem="relaxed")

    lo, hi = tl.load(p_lo + o_x, m_x, 0)[:, None], tl.load(p_hi + o_x, m_x, 0)[:, None]
    o_n = tl.arange(0, NARROW)
    each: tl.constexpr = BLOCK // NARROW
    for step in tl.range(i_c * mixed // parts * each, (i_c + 1) * mixed // parts * each, num_stages=1):
        t = tl.where(step < each, i_t, q + step // each - 1)
        t += tl.where((step >= each) & (t >= b), whole - b, 0)
        i_y = t * BLOCK + step % each * NARROW
        o_y = i_y + o_n
        m_y = o_y < count
        _, b_s = logits(b_x, p_z, i_y, o_n, o_d, D, PRECISION)
        m_pair = m_y[None, :] & m_x[:, None] & (o_x[:, None] != o_y[None, :])
        b_row = tl.where(m_pair, tl.exp2(b_s - shift), 0.0)
        b_column = b_row
        if WEIGHTED:
            b_column = b_row * b_w
            b_row = b_row * tl.load(p_weight + o_y, m_y, 0.0)[None, :]
        m_positive = (o_y[None, :] >= lo) & (o_y[None, :] < hi)
        b_positives += tl.sum(tl.where(m_positive, b_row, 0.0), 1)
        b_negatives += tl.sum(tl.where(m_positive, 0.0, b_row), 1)
        if t != i_t:
            tl.atomic_add(p_sums + o_y, tl.sum(tl.where(m_positive, b_column, 0.0), 0), m_y, sem="relaxed")
            tl.atomic_add(p_sums + total + o_y, tl.sum(tl.where(m_positive, 0.0, b_column), 0), m_y, sem="relaxed")
        if SUM:
            b_s = tl.where(m_pair & m_positive, b_s, 0.0)
            b_total += tl.sum(b_s, 1)
            if t != i_t:
                tl.atomic_add(p_sums + 2 * total + o_y, tl.sum(b_s, 0), m_y, sem="relaxed")
    tl.atomic_add(p_sums + o_x, b_positives, m_x, sem="relaxed")
    tl.atomic_add(p_sums + total + o_x, b_negatives, m_x, sem="relaxed")
    if SUM:
        tl.atomic_add(p_sums + 2 * total + o_x, b_total, m_x, sem="relaxed")


@triton.jit
def merge(b_s, b_max, b_sum):
    """A running (maximum, sum of 2^(s - maximum)) of each row, with more logits."""
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    b_safe = tl.where(b_new == -INF, 0.0, b_new)
    return b_new, b_sum * tl.exp2(b_max - b_safe) + tl.sum(tl.exp2(b_s - b_safe[:, None]), 1)


@triton.jit
def terms(b_s, p_weight, o_y, end, own, shift, SELF: tl.constexpr, WEIGHTED: tl.constexpr, SHIFTED: tl.constexpr):
    """From a tile of logits to weighted exponentials where SHIFTED, else to logits; nothing for a key that is given."""
    if SHIFTED:
        b_s = tl.exp2(b_s - shift)
    if WEIGHTED:
        b_w = tl.load(p_weight + o_y, o_y < end, 0.0)[None, :]
        b_s = b_s * b_w if SHIFTED else b_s + b_w
    if SELF == "given":
        b_s = tl.where(o_y[None, :] == own, 0.0 if SHIFTED else -INF, b_s)
    return b_s


@triton.jit(do_not_specialize=LOOSE)
def rows(
    p_x, p_y, p_lo, p_hi, p_itself, p_count, p_weight, p_shift, p_parts,
    n, m, x_padded, y_padded, tiles, chunks,
    BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, NARROW: tl.constexpr, D: tl.constexpr, SUM: tl.constexpr,
    SELF: tl.constexpr, WEIGHTED: tl.constexpr, SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Parts (chunks, 3, G, n), each chunk over a share of the keys: log-sum-exps of positives, of negatives, the sum.

    SELF: "none", "same" (row i is key i) or "given". Weights are w where SHIFTED, else log2 w.
    """
    shift = tl.load(p_shift)
    if (shift == shift) != SHIFTED:
        return
    i_c, i_t, i_g = tl.program_id(0) % chunks, tl.program_id(0) // chunks % tiles, tl.program_id(0) // chunks // tiles
    groups = tl.num_programs(0) // chunks // tiles
    base = i_g.to(tl.int64) * n
    p_x += i_g.to(tl.int64) * x_padded * D
    p_y += i_g.to(tl.int64) * y_padded * D
    p_lo, p_hi, p_itself, p_weight = p_lo + base, p_hi + base, p_itself + base, p_weight + i_g.to(tl.int64) * m
    count = tl.load(p_count + i_g)
    size = count if SELF == "same" else n  # rows of x that take part

    o_d, o_r, i_x = tl.arange(0, D), tl.arange(0, BLOCK_X), i_t * BLOCK_X
    o_x = i_x + o_r
    m_x = o_x < size
    own = o_x[:, None]
    if SELF == "given":
        own = tl.load(p_itself + o_x, m_x, -1)[:, None]
    b_x = tl.load(p_x + i_x.to(tl.int64) * D + o_r[:, None] * D + o_d[None, :])
    b_positives, b_negatives = tl.zeros([BLOCK_X], tl.float32), tl.zeros([BLOCK_X], tl.float32)
    b_max_p, b_max_n = tl.full([BLOCK_X], -INF, tl.float32), tl.full([BLOCK_X], -INF, tl.float32)
    b_total = tl.zeros([BLOCK_X], tl.float32)
    if i_x < size:
        last = tl.minimum(i_x + BLOCK_X, size) - 1
        a, p, d0, d1, q, b, whole, pure, mixed = spans(p_lo, p_hi, i_x, last, count, BLOCK_Y, SELF == "same")

        o = tl.arange(0, BLOCK_Y)
        for step in range(i_c * pure // chunks, (i_c + 1) * pure // chunks):
            t = pure_tile(step, a, p, d0, d1, q, b)
            o_y = t * BLOCK_Y + o
            positive = (t >= p) & (t < q)
            _, b_s = logits(b_x, p_y, t * BLOCK_Y, o, o_d, D, PRECISION)
            if SUM:
                b_other = tl.where(o_y[None, :] == own, 0.0, b_s) if SELF == "given" else b_s
                b_total += tl.where(positive, tl.sum(b_other, 1), 0.0)
            b_s = terms(b_s, p_weight, o_y, count, own, shift, SELF, WEIGHTED, SHIFTED)
            if SHIFTED:
                b_sum = tl.sum(b_s, 1)
                b_positives += tl.where(positive, b_sum, 0.0)
                b_negatives += tl.where(positive, 0.0, b_sum)
            else:
                b_max = tl.where(positive, b_max_p, b_max_n)
                b_max, b_sum = merge(b_s, b_max, tl.where(positive, b_positives, b_negatives))
                b_max_p, b_positives = tl.where(positive, b_max, b_max_p), tl.where(positive, b_sum, b_positives)
                b_max_n, b_negatives = tl.where(positive, b_max_n, b_max), tl.where(positive, b_negatives, b_sum)

        lo, hi = tl.load(p_lo + o_x, m_x, 0)[:, None], tl.load(p_hi + o_x, m_x, 0)[:, None]
        o_n = tl.arange(0, NARROW)
        each: tl.constexpr = BLOCK_Y // NARROW
        for step in tl.range(i_c * mixed // chunks * each, (i_c + 1) * mixed // chunks * each, num_stages=1):
            i_y = mixed_tile(step // each, a, p, d0, d1, q, b, whole) * BLOCK_Y + step % each * NARROW
            o_y = i_y + o_n
            _, b_s = logits(b_x, p_y, i_y, o_n, o_d, D, PRECISION)
            m_part = (o_y < count)[None, :]
            if SELF != "none":
                m_part = m_part & (o_y[None, :] != own)
            m_positive = (o_y[None, :] >= lo) & (o_y[None, :] < hi)
            if SUM:
                b_total += tl.sum(tl.where(m_part & m_positive, b_s, 0.0), 1)
            b_s = terms(b_s, p_weight, o_y, count, own, shift, "none", WEIGHTED, SHIFTED)
            nothing = 0.0 if SHIFTED else -INF
            b_p = tl.where(m_part & m_positive, b_s, nothing)
            b_n = tl.where(m_part & ~m_positive, b_s, nothing)
            if SHIFTED:
                b_positives += tl.sum(b_p, 1)
                b_negatives += tl.sum(b_n, 1)
            else:
                b_max_p, b_positives = merge(b_p, b_max_p, b_positives)
                b_max_n, b_negatives = merge(b_n, b_max_n, b_negatives)
    if SHIFTED:
        b_max_p = tl.full([BLOCK_X], 0.0, tl.float32) + shift
        b_max_n = b_max_p
    out = (i_c.to(tl.int64) * 3 * groups + i_g) * n + o_x
    tl.store(p_parts + out, b_max_p + tl.log2(b_positives), o_x < n)
    tl.store(p_parts + groups.to(tl.int64) * n + out, b_max_n + tl.log2(b_negatives), o_x < n)
    if SUM:
        tl.store(p_parts + 2 * groups.to(tl.int64) * n + out, b_total, o_x < n)
