"""The backward kernel: gradients of the features, from tiles of pairs that are formed anew.

With upstream gradients g⁺, g⁻ of positives and negatives (natural logarithms), anchor i and key j,

    W_ij = w_j exp(s_ij) · (j in P(i) ? g⁺_i exp(-positives_i) : g⁻_i exp(-negatives_i)),     0 for an anchor's own key,
    d anchors = W keys,    d keys = Wᵀ anchors,    and where the anchors are the keys:   (W + Wᵀ) anchors.

`weigh` owns a tile x of rows of the result and runs over tiles y of the other side: no atomics, the same bits each
time. ROWS says that x are anchors (it adds W), COLUMNS that x are keys (it adds Wᵀ); both where they are the same,
so that one product s and one product with y serve both terms.

SHIFTED: exp(s - c) is formed once and meets a factor g exp(c - logsumexp) of each anchor. Otherwise each anchor has
its own exponential. `factors` prepares either, with the upstream gradients divided by their largest magnitude (factors
reach exp(-88), and small gradients would make them denormal) and multiplied by GAIN, which keeps W of half
precision away from denormals: W is at most 2.
"""

import triton
import triton.language as tl

from mmgl_losses.contrast.fused.forward_kernels import INF, LOOSE, kind, logits

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["size"])
def factors(
    p_grad_p, p_grad_n, p_positives, p_negatives, p_shift, p_largest, p_factor, p_log, size,
    BLOCK: tl.constexpr, GAIN: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """(2, size): what multiplies the exponentials of each anchor; without a shift also its log-sum-exps over log 2."""
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = o < size
    largest = tl.load(p_largest)
    unit = tl.where(largest == 0, 1.0, largest)
    shift = tl.load(p_shift)
    for side in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
        b_lse = tl.load((p_negatives if side else p_positives) + o, mask, 0.0)
        b_factor = tl.load((p_grad_n if side else p_grad_p) + o, mask, 0.0) / unit * GAIN
        empty = b_lse == -INF
        b_log = b_lse * LOG2_E
        if SHIFTED:
            b_factor *= tl.exp2(shift - b_log)
        else:
            tl.store(p_log + side * size + o, tl.where(empty, INF, b_log), mask)
        tl.store(p_factor + side * size + o, tl.where(empty, 0.0, b_factor), mask)


@triton.jit
def share(b_s, b_factor, b_log, b_w, WEIGHTED: tl.constexpr, SHIFTED: tl.constexpr):
    """W of a tile of which each anchor has one factor; b_s holds exponentials where SHIFTED, else logits."""
    if SHIFTED:
        return b_s * (b_factor * b_w) if WEIGHTED else b_s * b_factor
    return tl.exp2((b_s + b_w if WEIGHTED else b_s) - b_log) * b_factor


@triton.jit
def masked(
    b_s, m_positive, o_a, o_k, itself, factor_p, factor_n, log_p, log_n, b_w, count,
    SELF: tl.constexpr, WEIGHTED: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """W of any tile, from offsets and values of its anchors and keys that run along its two axes."""
    b_log = 0.0 if SHIFTED else tl.where(m_positive, log_p, log_n)
    b_share = share(b_s, tl.where(m_positive, factor_p, factor_n), b_log, b_w, WEIGHTED, SHIFTED)
    m_part = o_k < count
    if SELF == "same":
        m_part = m_part & (o_k != o_a)
    if SELF == "given":
        m_part = m_part & (o_k != itself)
    return tl.where(m_part, b_share, 0.0)


@triton.jit(do_not_specialize=LOOSE)
def weigh(
    p_x, p_y, p_lo, p_hi, p_itself, p_factor, p_log, p_count, p_weight, p_shift, p_largest, p_grad,
    n, m, x_padded, y_padded, tiles, chunks, scale,
    BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, SELF: tl.constexpr, SYMMETRIC: tl.constexpr, WEIGHTED: tl.constexpr,
    SHIFTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients (chunks, G, rows of x, WIDTH), each chunk over a share of y, times `scale` and the largest upstream.

    lo, hi, itself, factor and log are of the n anchors, weights of the m keys (w where SHIFTED, else log2 w). SELF as
    in `rows`; SYMMETRIC: the anchors are the keys, and i is a positive of j where j is one of i.
    """
    shift = tl.load(p_shift)
    if (shift == shift) != SHIFTED:
        return
    i_c, i_t, i_g = tl.program_id(0) % chunks, tl.program_id(0) // chunks % tiles, tl.program_id(0) // chunks // tiles
    groups = tl.num_programs(0) // chunks // tiles
    base, total = i_g.to(tl.int64) * n, groups.to(tl.int64) * n
    p_x += i_g.to(tl.int64) * x_padded * D
    p_y += i_g.to(tl.int64) * y_padded * D
    p_lo, p_hi, p_itself, p_weight = p_lo + base, p_hi + base, p_itself + base, p_weight + i_g.to(tl.int64) * m
    p_factor, p_log = p_factor + base, p_log + base
    count = tl.load(p_count + i_g).to(tl.int32)
    size = n if ROWS else m  # rows of x

    o_r, o, o_d = tl.arange(0, BLOCK_X), tl.arange(0, BLOCK_Y), tl.arange(0, D)
    i_x = i_t * BLOCK_X
    o_x, last = i_x + o_r, tl.minimum(i_x + BLOCK_X, size) - 1
    m_x = o_x < size
    reach = count  # of y that x has to do with
    if COLUMNS:
        reach = tl.where(i_x < count, n, count if ROWS else 0)
    work = tl.cdiv(reach, BLOCK_Y)
    begin, end = i_c * work // chunks, (i_c + 1) * work // chunks

    b_x = tl.load(p_x + i_x.to(tl.int64) * D + o_r[:, None] * D + o_d[None, :])
    b_w_x, own, log_p, log_n = 0.0, 0.0, 0.0, 0.0  # where nothing else is said below
    uniform = True  # the anchors of one tile are sorted throughout
    if ROWS:
        lo = tl.load(p_lo + o_x, m_x, 0).to(tl.int32)[:, None]
        hi = tl.load(p_hi + o_x, m_x, 0).to(tl.int32)[:, None]
        factor_p = tl.load(p_factor + o_x, m_x, 0.0)[:, None]
        factor_n = tl.load(p_factor + total + o_x, m_x, 0.0)[:, None]
        if not SHIFTED:
            log_p = tl.load(p_log + o_x, m_x, INF)[:, None]
            log_n = tl.load(p_log + total + o_x, m_x, INF)[:, None]
        if SELF == "given":
            own = tl.load(p_itself + o_x, m_x, -1).to(tl.int32)[:, None]
        if SELF == "same":
            uniform = (last < count) | (i_x >= count)
    if COLUMNS and WEIGHTED:
        b_w_x = tl.load(p_weight + o_x, m_x, 0.0)[:, None]
    b_grad = tl.zeros([BLOCK_X, D], tl.float32)
    for step in range(begin, end):
        i_y = step * BLOCK_Y
        o_y = i_y + o
        m_y = o_y < (n if COLUMNS else m)
        b_y, b_s = logits(b_x, p_y, i_y, o, o_d, D, PRECISION)
        # Without a shift nothing is taken off: Triton 3.6 cannot pipeline a product that only branches use.
        b_s = tl.exp2(b_s - shift) if SHIFTED else b_s - tl.where(count < 0, 1.0, 0.0)
        b_w_y = tl.load(p_weight + o_y, m_y, 0.0)[None, :] if ROWS and WEIGHTED else 0.0
        own_y = tl.load(p_itself + o_y, m_y, -1).to(tl.int32)[None, :] if COLUMNS and SELF == "given" else 0.0
        side = 2
        if ROWS:
            side = tl.where(uniform & (i_y + BLOCK_Y <= count), kind(p_lo, p_hi, i_x, last, i_y, i_y + BLOCK_Y), 2)
        if COLUMNS:
            side_y = side
            if not SYMMETRIC:
                side_y = kind(p_lo, p_hi, i_y, tl.minimum(i_y + BLOCK_Y, n) - 1, i_x, i_x + BLOCK_X)
            side_y = tl.where(i_x + BLOCK_X <= count, side_y, 2)
            side = tl.where(side == side_y, side, 2) if ROWS else side_y
        if SELF == "same":
            side = tl.where((i_y < i_x + BLOCK_X) & (i_x < i_y + BLOCK_Y), 2, side)
        if side < 2:
            skip = tl.where(side == 1, 0, total)
            if ROWS:
                b_log = 0.0 if SHIFTED else tl.where(side == 1, log_p, log_n)
                b_share = share(b_s, tl.where(side == 1, factor_p, factor_n), b_log, b_w_y, WEIGHTED, SHIFTED)
                if SELF == "given":
                    b_share = tl.where(o_y[None, :] == own, 0.0, b_share)
            if COLUMNS:
                factor_y = tl.load(p_factor + skip + o_y, m_y, 0.0)[None, :]
                log_y = 0.0 if SHIFTED else tl.load(p_log + skip + o_y, m_y, INF)[None, :]
                b_other = share(b_s, factor_y, log_y, b_w_x, WEIGHTED, SHIFTED)
                if SELF == "given":
                    b_other = tl.where(o_x[:, None] == own_y, 0.0, b_other)
                b_share = b_share + b_other if ROWS else b_other
        else:
            if COLUMNS:
                lo_y = tl.load(p_lo + o_y, m_y, 0).to(tl.int32)[None, :]
                hi_y = tl.load(p_hi + o_y, m_y, 0).to(tl.int32)[None, :]
            if SYMMETRIC:  # ranges are equal or disjoint, and one of two is not empty: their centres tell
                m_positive = lo + hi == lo_y + hi_y
            elif ROWS:
                m_positive = (o_y[None, :] >= lo) & (o_y[None, :] < hi)
            if ROWS:
                b_share = masked(
                    b_s, m_positive, o_x[:, None], o_y[None, :], own, factor_p, factor_n, log_p, log_n, b_w_y, count,
                    SELF, WEIGHTED, SHIFTED,
                )  # fmt: skip
            if COLUMNS:
                if not SYMMETRIC:
                    m_positive = (o_x[:, None] >= lo_y) & (o_x[:, None] < hi_y)
                factor_py = tl.load(p_factor + o_y, m_y, 0.0)[None, :]
                factor_ny = tl.load(p_factor + total + o_y, m_y, 0.0)[None, :]
                log_py = 0.0 if SHIFTED else tl.load(p_log + o_y, m_y, INF)[None, :]
                log_ny = 0.0 if SHIFTED else tl.load(p_log + total + o_y, m_y, INF)[None, :]
                b_other = masked(
                    b_s, m_positive, o_y[None, :], o_x[:, None], own_y, factor_py, factor_ny, log_py, log_ny, b_w_x,
                    count, SELF, WEIGHTED, SHIFTED,
                )  # fmt: skip
                b_share = b_share + b_other if ROWS else b_other
        b_grad = tl.dot(b_share.to(b_y.dtype), b_y, b_grad, input_precision=PRECISION)
    largest = tl.load(p_largest)
    b_grad *= tl.where(largest == 0, 1.0, largest) * scale
    p_grad += ((i_c.to(tl.int64) * groups + i_g) * size + i_x) * WIDTH
    tl.store(p_grad + o_r[:, None] * WIDTH + o_d[None, :], b_grad, m_x[:, None] & (o_d[None, :] < WIDTH))
