"""The backward kernel: gradients of the features, from tiles of pairs that are formed anew.

With upstream gradients g⁺, g⁻ of positives and negatives (natural logarithms), anchor i and key j,

    W_ij = w_j exp(s_ij) · (j in P(i) ? g⁺_i exp(-positives_i) : g⁻_i exp(-negatives_i)),     0 for an anchor's own key,
    d anchors = W keys,    d keys = Wᵀ anchors,    and where the anchors are the keys:   (W + Wᵀ) anchors.

`weigh` owns a tile x of rows of the result and runs over tiles y of the other side: no atomics, the same bits each
time. ROWS says that x are anchors (it adds W), COLUMNS that x are keys (it adds Wᵀ); both where they are the same,
so that one product s and one product with y serve both terms. The ranges are those of x: the keys that are positives
of an anchor or, where x are keys alone, the anchors whose positive it is.

SHIFTED: exp(s - c) is formed once and meets a factor g exp(c - logsumexp) of each anchor. Otherwise each anchor has
its own exponential. `factors` prepares either, with the upstream gradients divided by their largest magnitude (factors
reach exp(-88), and small gradients would make them denormal) and multiplied by GAIN, which keeps W of half
precision away from denormals: W is at most 2.
"""

# To a type checker a kernel is the Python function that it looks like.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from mmgl_losses.contrast.fused.forward_kernels import INF, LOOSE, logits
from mmgl_losses.contrast.fused.spans import mixed_tile, pure_tile, spans

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
    """W of a tile, from what its anchors and keys have along its axes; b_s holds exponentials where SHIFTED."""
    if SHIFTED:
        return b_s * (b_factor * b_w) if WEIGHTED else b_s * b_factor
    return tl.exp2((b_s + b_w if WEIGHTED else b_s) - b_log) * b_factor


@triton.jit(do_not_specialize=LOOSE)
def weigh(
    p_x, p_y, p_lo, p_hi, p_itself, p_factor, p_log, p_count, p_weight, p_shift, p_largest, p_grad,
    n, m, x_padded, y_padded, tiles, chunks, scale,
    BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, NARROW: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SELF: tl.constexpr, WEIGHTED: tl.constexpr, SHIFTED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients (chunks, G, rows of x, WIDTH), each chunk over a share of y, times `scale` and the largest upstream.

    itself, factor and log are of the n anchors, weights of the m keys (w where SHIFTED, else log2 w), lo and hi of x.
    SELF as in `rows`.
    """
    shift = tl.load(p_shift)
    if (shift == shift) != SHIFTED:
        return
    i_c, i_t, i_g = tl.program_id(0) % chunks, tl.program_id(0) // chunks % tiles, tl.program_id(0) // chunks // tiles
    groups = tl.num_programs(0) // chunks // tiles
    base, total = i_g.to(tl.int64) * n, groups.to(tl.int64) * n
    p_x += i_g.to(tl.int64) * x_padded * D
    p_y += i_g.to(tl.int64) * y_padded * D
    p_itself, p_factor, p_log, p_weight = (
        p_itself + base,
        p_factor + base,
        p_log + base,
        p_weight + i_g.to(tl.int64) * m,
    )
    size = n if ROWS else m  # rows of x
    p_lo, p_hi = p_lo + i_g.to(tl.int64) * size, p_hi + i_g.to(tl.int64) * size
    count = tl.load(p_count + i_g)
    x_end = count if COLUMNS else n  # rows of either side that take part
    y_end = count if ROWS else n

    o_r, o_d, i_x = tl.arange(0, BLOCK_X), tl.arange(0, D), i_t * BLOCK_X
    o_x = i_x + o_r
    m_x = o_x < x_end
    b_grad = tl.zeros([BLOCK_X, D], tl.float32)
    if i_x < x_end:
        last = tl.minimum(i_x + BLOCK_X, x_end) - 1
        a, p, d0, d1, q, b, whole, pure, mixed = spans(p_lo, p_hi, i_x, last, y_end, BLOCK_Y, SELF == "same")

        b_x = tl.load(p_x + i_x.to(tl.int64) * D + o_r[:, None] * D + o_d[None, :])
        b_w_x, own, log_p, log_n = 0.0, 0, 0.0, 0.0  # where nothing else is said below
        if ROWS:
            factor_p = tl.load(p_factor + o_x, m_x, 0.0)[:, None]
            factor_n = tl.load(p_factor + total + o_x, m_x, 0.0)[:, None]
            if not SHIFTED:
                log_p = tl.load(p_log + o_x, m_x, INF)[:, None]
                log_n = tl.load(p_log + total + o_x, m_x, INF)[:, None]
            if SELF == "given":
                own = tl.load(p_itself + o_x, m_x, -1)[:, None]
        if COLUMNS and WEIGHTED:
            b_w_x = tl.load(p_weight + o_x, m_x, 0.0)[:, None]

        o = tl.arange(0, BLOCK_Y)
        for step in range(i_c * pure // chunks, (i_c + 1) * pure // chunks):
            t = pure_tile(step, a, p, d0, d1, q, b)
            o_y = t * BLOCK_Y + o
            positive = (t >= p) & (t < q)
            b_y, b_s = logits(b_x, p_y, t * BLOCK_Y, o, o_d, D, PRECISION)
            if SHIFTED:
                b_s = tl.exp2(b_s - shift)
            if ROWS:
                b_w_y = tl.load(p_weight + o_y)[None, :] if WEIGHTED else 0.0
                b_log = 0.0 if SHIFTED else tl.where(positive, log_p, log_n)
                b_share = share(b_s, tl.where(positive, factor_p, factor_n), b_log, b_w_y, WEIGHTED, SHIFTED)
                if SELF == "given":
                    b_share = tl.where(o_y[None, :] == own, 0.0, b_share)
            if COLUMNS:
                side = tl.where(positive, 0, total)
                log_y = 0.0 if SHIFTED else tl.load(p_log + side + o_y)[None, :]
                b_other = share(b_s, tl.load(p_factor + side + o_y)[None, :], log_y, b_w_x, WEIGHTED, SHIFTED)
                if SELF == "given":
                    b_other = tl.where(o_x[:, None] == tl.load(p_itself + o_y)[None, :], 0.0, b_other)
                b_share = b_share + b_other if ROWS else b_other
            b_grad = tl.dot(b_share.to(b_y.dtype), b_y, b_grad, input_precision=PRECISION)

        lo, hi = tl.load(p_lo + o_x, m_x, 0)[:, None], tl.load(p_hi + o_x, m_x, 0)[:, None]
        o_n = tl.arange(0, NARROW)
        each: tl.constexpr = BLOCK_Y // NARROW
        for step in tl.range(i_c * mixed // chunks * each, (i_c + 1) * mixed // chunks * each, num_stages=1):
            i_y = mixed_tile(step // each, a, p, d0, d1, q, b, whole) * BLOCK_Y + step % each * NARROW
            o_y = i_y + o_n
            m_y = o_y < y_end
            b_y, b_s = logits(b_x, p_y, i_y, o_n, o_d, D, PRECISION)
            if SHIFTED:
                b_s = tl.exp2(b_s - shift)
            m_positive = (o_y[None, :] >= lo) & (o_y[None, :] < hi)
            m_pair = m_y[None, :]
            if SELF == "same":
                m_pair = m_pair & (o_x[:, None] != o_y[None, :])
            if ROWS:
                b_w_y = tl.load(p_weight + o_y, m_y, 0.0)[None, :] if WEIGHTED else 0.0
                b_log = 0.0 if SHIFTED else tl.where(m_positive, log_p, log_n)
                b_share = share(b_s, tl.where(m_positive, factor_p, factor_n), b_log, b_w_y, WEIGHTED, SHIFTED)
                if SELF == "given":
                    b_share = tl.where(o_y[None, :] == own, 0.0, b_share)
            if COLUMNS:
                factor_py = tl.load(p_factor + o_y, m_y, 0.0)[None, :]
                factor_ny = tl.load(p_factor + total + o_y, m_y, 0.0)[None, :]
                log_y = 0.0
                if not SHIFTED:
                    log_py = tl.load(p_log + o_y, m_y, INF)[None, :]
                    log_y = tl.where(m_positive, log_py, tl.load(p_log + total + o_y, m_y, INF)[None, :])
                b_other = share(b_s, tl.where(m_positive, factor_py, factor_ny), log_y, b_w_x, WEIGHTED, SHIFTED)
                if SELF == "given":
                    b_other = tl.where(o_x[:, None] == tl.load(p_itself + o_y, m_y, -1)[None, :], 0.0, b_other)
                b_share = b_share + b_other if ROWS else b_other
            b_share = tl.where(m_pair, b_share, 0.0)
            b_grad = tl.dot(b_share.to(b_y.dtype), b_y, b_grad, input_precision=PRECISION)
        largest = tl.load(p_largest)
        b_grad = tl.where(m_x[:, None], b_grad * (tl.where(largest == 0, 1.0, largest) * scale), 0.0)
    p_grad += ((i_c.to(tl.int64) * groups + i_g) * size + i_x) * WIDTH
    tl.store(p_grad + o_r[:, None] * WIDTH + o_d[None, :], b_grad, (o_x < size)[:, None] & (o_d[None, :] < WIDTH))
