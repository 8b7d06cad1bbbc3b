"""The forward kernels: sums of exponentials over positives and over negatives, without forming the pairs.

With features scaled so that a product is a logit s in units of log 2, and c one constant for all pairs,

    positives_i = c + log2 Σ_{j in P(i)} w_j 2^(s_ij - c),    negatives_i likewise over N(i).

`credit` is for anchors that are the keys: s is symmetric, so each unordered pair of tiles is formed once and credits
its rows and its columns. With T tiles, tile I meets I, I + 1, ..., I + ⌊T/2⌋ (mod T), the last of them from one side
only where T is even: every program has the same work. `rows` forms all pairs of a tile of rows and needs no atomics;
it serves separate keys, deterministic runs and, with a running maximum in place of c, logits of unknown range.

Positives are a range of the sorted keys: a tile inside all ranges, or outside all, is pure and needs no masks.
A shift that is NaN says that no constant fits: the kernels that need one do nothing then, `rows` with a maximum
does its work only then, and nothing has to wait for the device to know.
"""

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LN_2 = tl.constexpr(0.6931471805599453)
LOOSE = ["n", "m", "tiles", "chunks"]  # values that come and go: no kernel of their own for each


@triton.jit
def kind(p_lo, p_hi, first, last, k_0, k_1):
    """1: anchors first..last have all keys [k_0, k_1) as positives; 0: as negatives; 2: neither.

    Anchors are sorted, so the ends of their ranges ascend, and two of them bound the others.
    """
    inside = (tl.load(p_lo + last) <= k_0) & (k_1 <= tl.load(p_hi + first))
    outside = (k_1 <= tl.load(p_lo + first)) | (k_0 >= tl.load(p_hi + last))
    return tl.where(inside, 1, tl.where(outside, 0, 2))


@triton.jit
def logits(b_x, p_y, i_y, o_y, o_d, D: tl.constexpr, PRECISION: tl.constexpr):
    """A tile of keys (or of anchors), and its products with the tile x: (X, Y)."""
    b_y = tl.load(p_y + tl.cast(i_y, tl.int64) * D + o_y[:, None] * D + o_d[None, :])
    return b_y, tl.dot(b_x, tl.trans(b_y), input_precision=PRECISION)


@triton.jit(do_not_specialize=LOOSE)
def credit(
    p_z, p_lo, p_hi, p_count, p_weight, p_shift, p_sums, n, padded, tiles, chunks,
    BLOCK: tl.constexpr, D: tl.constexpr, SYMMETRIC: tl.constexpr, WEIGHTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add to the sums (2, G, n) of both tiles of each pair; z is (G, padded, D)."""
    shift = tl.load(p_shift)
    if shift != shift:
        return
    i_c, i_t, i_g = tl.program_id(0) % chunks, tl.program_id(0) // chunks % tiles, tl.program_id(0) // chunks // tiles
    base, total = i_g.to(tl.int64) * n, (tl.num_programs(0) // chunks // tiles).to(tl.int64) * n
    p_z += i_g.to(tl.int64) * padded * D
    p_lo, p_hi, p_weight, p_sums = p_lo + base, p_hi + base, p_weight + base, p_sums + base
    count = tl.load(p_count + i_g).to(tl.int32)

    # Tiles with keys meet one another around the circle; anchors that are no keys meet all keys, from their side.
    turn = tl.cdiv(count, BLOCK)
    mutual = i_t < turn
    half = turn // 2 + 1 - ((turn % 2 == 0) & (i_t * 2 >= turn)).to(tl.int32)
    work = tl.where(mutual, half, turn)
    begin, end = i_c * work // chunks, (i_c + 1) * work // chunks

    o, o_d = tl.arange(0, BLOCK), tl.arange(0, D)
    i_x = i_t * BLOCK
    o_x, last = i_x + o, tl.minimum(i_x + BLOCK, n) - 1
    m_x = o_x < n
    b_x = tl.load(p_z + i_x.to(tl.int64) * D + o[:, None] * D + o_d[None, :])
    lo = tl.load(p_lo + o_x, m_x, 0).to(tl.int32)[:, None]
    hi = tl.load(p_hi + o_x, m_x, 0).to(tl.int32)[:, None]
    b_positives, b_negatives = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if WEIGHTED:
        b_w = tl.load(p_weight + o_x, m_x, 0.0)
    for step in range(begin, end):
        i_y = tl.where(mutual, (i_t + step) % turn, step) * BLOCK
        o_y = i_y + o
        m_y = o_y < n
        _, b_s = logits(b_x, p_z, i_y, o, o_d, D, PRECISION)
        b_e = tl.exp2(b_s - shift)
        b_row = b_e  # shares of the rows, weighted by the keys that are columns
        b_column = b_e  # and the other way round
        if WEIGHTED:
            b_row = b_e * tl.load(p_weight + o_y, m_y, 0.0)[None, :]
            b_column = b_e * b_w[:, None]
        # Rows beyond `count` are sorted anew: a tile with some of them is never taken as pure.
        pure = tl.where((i_x + BLOCK <= count) & (i_y + BLOCK <= count) & (i_x != i_y), 1, 0)
        side = kind(p_lo, p_hi, i_x, last, i_y, i_y + BLOCK)
        if not SYMMETRIC:
            pure = tl.where(kind(p_lo, p_hi, i_y, tl.minimum(i_y + BLOCK, n) - 1, i_x, i_x + BLOCK) == side, pure, 0)
        if (pure == 1) & (side < 2):
            b_sum = tl.sum(b_row, 1)
            b_positives += tl.where(side == 1, b_sum, 0.0)
            b_negatives += tl.where(side == 1, 0.0, b_sum)
            tl.atomic_add(p_sums + tl.where(side == 1, 0, total) + o_y, tl.sum(b_column, 0), sem="relaxed")
        else:
            lo_y = tl.load(p_lo + o_y, m_y, 0).to(tl.int32)[None, :]
            hi_y = tl.load(p_hi + o_y, m_y, 0).to(tl.int32)[None, :]
            m_positive = (o_y[None, :] >= lo) & (o_y[None, :] < hi)
            if SYMMETRIC:  # ranges are equal or disjoint, and one of two is not empty: their centres tell
                m_positive = lo + hi == lo_y + hi_y
            b_row = tl.where((o_y[None, :] < count) & (o_x[:, None] != o_y[None, :]), b_row, 0.0)
            b_positives += tl.sum(tl.where(m_positive, b_row, 0.0), 1)
            b_negatives += tl.sum(tl.where(m_positive, 0.0, b_row), 1)
            if mutual & (i_x != i_y):
                if not SYMMETRIC:
                    m_positive = (o_x[:, None] >= lo_y) & (o_x[:, None] < hi_y)
                b_column = tl.where(o_x[:, None] < count, b_column, 0.0)
                tl.atomic_add(p_sums + o_y, tl.sum(tl.where(m_positive, b_column, 0.0), 0), m_y, sem="relaxed")
                tl.atomic_add(p_sums + total + o_y, tl.sum(tl.where(m_positive, 0.0, b_column), 0), m_y, sem="relaxed")
    tl.atomic_add(p_sums + o_x, b_positives, m_x & (begin < end), sem="relaxed")
    tl.atomic_add(p_sums + total + o_x, b_negatives, m_x & (begin < end), sem="relaxed")


@triton.jit
def merge(b_s, b_max, b_sum):
    """A running (maximum, sum of 2^(s - maximum)) of each row, with more logits."""
    b_new = tl.maximum(b_max, tl.max(b_s, 1))
    b_safe = tl.where(b_new == -INF, 0.0, b_new)
    return b_new, b_sum * tl.exp2(b_max - b_safe) + tl.sum(tl.exp2(b_s - b_safe[:, None]), 1)


@triton.jit(do_not_specialize=LOOSE)
def rows(
    p_x, p_y, p_lo, p_hi, p_itself, p_count, p_weight, p_shift, p_positives, p_negatives,
    n, m, x_padded, y_padded, tiles, chunks,
    BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, D: tl.constexpr, SELF: tl.constexpr, WEIGHTED: tl.constexpr,
    SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Log-sum-exps (chunks, G, n) of tiles of rows, each chunk over a share of the keys, in units of 1.

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
    count = tl.load(p_count + i_g).to(tl.int32)
    work = tl.cdiv(count, BLOCK_Y)
    begin, end = i_c * work // chunks, (i_c + 1) * work // chunks

    o_d, o = tl.arange(0, D), tl.arange(0, BLOCK_Y)
    i_x = i_t * BLOCK_X
    o_r = tl.arange(0, BLOCK_X)
    o_x, last = i_x + o_r, tl.minimum(i_x + BLOCK_X, n) - 1
    m_x = o_x < n
    b_x = tl.load(p_x + i_x.to(tl.int64) * D + o_r[:, None] * D + o_d[None, :])
    lo = tl.load(p_lo + o_x, m_x, 0).to(tl.int32)[:, None]
    hi = tl.load(p_hi + o_x, m_x, 0).to(tl.int32)[:, None]
    own = o_x[:, None]
    if SELF == "given":
        own = tl.load(p_itself + o_x, m_x, -1).to(tl.int32)[:, None]
    uniform = True
    if SELF == "same":  # there, rows beyond `count` are sorted anew
        uniform = (last < count) | (i_x >= count)
    b_positives, b_negatives = tl.zeros([BLOCK_X], tl.float32), tl.zeros([BLOCK_X], tl.float32)
    b_max_p, b_max_n = tl.full([BLOCK_X], -INF, tl.float32), tl.full([BLOCK_X], -INF, tl.float32)
    for step in range(begin, end):
        i_y = step * BLOCK_Y
        o_y = (i_y + o)[None, :]
        _, b_s = logits(b_x, p_y, i_y, o, o_d, D, PRECISION)
        # Without a shift nothing is taken off: Triton 3.6 cannot pipeline a product that only branches use.
        b_s = tl.exp2(b_s - shift) if SHIFTED else b_s - tl.where(count < 0, 1.0, 0.0)
        if WEIGHTED:
            b_w = tl.load(p_weight + i_y + o, i_y + o < m, 0.0)[None, :]
            b_s = b_s * b_w if SHIFTED else b_s + b_w
        nothing = 0.0 if SHIFTED else -INF
        if SELF == "given":
            b_s = tl.where(o_y == own, nothing, b_s)
        side = tl.where(uniform & (i_y + BLOCK_Y <= count), kind(p_lo, p_hi, i_x, last, i_y, i_y + BLOCK_Y), 2)
        if SELF == "same":
            side = tl.where((i_y < i_x + BLOCK_X) & (i_x < i_y + BLOCK_Y), 2, side)
        if side < 2:
            if SHIFTED:
                b_sum = tl.sum(b_s, 1)
                b_positives += tl.where(side == 1, b_sum, 0.0)
                b_negatives += tl.where(side == 1, 0.0, b_sum)
            else:
                b_max = tl.where(side == 1, b_max_p, b_max_n)
                b_max, b_sum = merge(b_s, b_max, tl.where(side == 1, b_positives, b_negatives))
                b_max_p, b_positives = tl.where(side == 1, b_max, b_max_p), tl.where(side == 1, b_sum, b_positives)
                b_max_n, b_negatives = tl.where(side == 1, b_max_n, b_max), tl.where(side == 1, b_negatives, b_sum)
        else:
            m_part = o_y < count
            if SELF == "same":
                m_part = m_part & (o_y != own)
            m_positive = (o_y >= lo) & (o_y < hi)
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
    out = (i_c.to(tl.int64) * groups + i_g) * n + o_x
    tl.store(p_positives + out, (b_max_p + tl.log2(b_positives)) * LN_2, m_x)
    tl.store(p_negatives + out, (b_max_n + tl.log2(b_negatives)) * LN_2, m_x)


@triton.jit(do_not_specialize=["size"])
def finish(p_sums, p_shift, p_positives, p_negatives, size, BLOCK: tl.constexpr):
    """From the sums (2, size) of `credit` to log-sum-exps, in units of 1."""
    shift = tl.load(p_shift)
    if shift != shift:
        return
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = o < size
    tl.store(p_positives + o, (tl.log2(tl.load(p_sums + o, mask, 1.0)) + shift) * LN_2, mask)
    tl.store(p_negatives + o, (tl.log2(tl.load(p_sums + size + o, mask, 1.0)) + shift) * LN_2, mask)
