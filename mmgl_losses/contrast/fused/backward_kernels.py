"""The backward kernel: gradients of the points, from tiles of pairs that are formed anew.

With upstream gradients g⁺, g⁻ of positives and negatives and o of the sum over positives (natural logarithms), anchor i
and key j,

    W_ij = j in P(i) ? w_j exp(s_ij - positives_i) g⁺_i + o_i : w_j exp(s_ij - negatives_i) g⁻_i,     0 for its own key,
    d anchors = W keys,    d keys = Wᵀ anchors,    and where the anchors are the keys:   (W + Wᵀ) anchors.

`weigh` owns a tile x of rows of the result and runs over tiles y of the other side: no atomics, the same bits each
time. ROWS says that x are anchors (it adds W), COLUMNS that x are keys (it adds Wᵀ); both where they are the same,
so that one product s and one product with y serve both terms. The ranges are those of x: the keys that are positives
of an anchor or, where x are keys alone, the anchors whose positive it is. At its end it goes on through the unit
vectors to the points as they were given (`deliver`); where y was cut into chunks, `add_up` does.

SHIFTED: exp(s - c) is formed once and meets a factor g exp(c - logsumexp) of each anchor. Otherwise each anchor has
its own exponential. `factors` prepares either, with the upstream gradients divided by their largest magnitude (factors
reach exp(-88), and small gradients would make them denormal) and multiplied by GAIN, which keeps W of half
precision away from denormals: W is at most 4.
"""

# To a type checker a kernel is the Python function that it looks like.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from mmgl_losses.contrast.fused.arrange_kernels import INF, rows_of, unit
from mmgl_losses.contrast.fused.forward_kernels import LOOSE, logits
from mmgl_losses.contrast.fused.spans import mixed_tile, pure_tile, spans

LOG2_E = tl.constexpr(1.4426950408889634)
ROWS_AT_ONCE = tl.constexpr(16)  # of a tile, on the way to the points
LAYOUT = ["stride_g", "stride_n", "stride_d", "out_g", "out_n", "out_d"]  # it matters alone whether one of them is 1


@triton.jit(do_not_specialize=["n", "blocks"])
def factors(
    p_grad_p, p_grad_n, p_grad_sum, p_positives, p_negatives, p_order, p_shift, p_largest, p_factor, p_log, p_share,
    n, blocks, BLOCK: tl.constexpr, GAIN: tl.constexpr, SUM: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """(3, G, n): what multiplies the exponentials of each anchor, and its part of the sum; without a shift log2's too.

    From the order of the points to that of places. The shares (G + 1,) are 1 and, of all groups, the largest gradient.
    """
    i_g, groups = (tl.program_id(0) // blocks).to(tl.int64), tl.num_programs(0) // blocks
    o_x = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    mask, out, total = o_x < n, i_g * n + o_x, groups.to(tl.int64) * n
    row = i_g * n + tl.load(p_order + out, mask, 0)
    largest, shift = tl.load(p_largest), tl.load(p_shift)
    share = tl.where(largest == 0, 1.0, largest)
    tl.store(p_share + i_g, 1.0)
    tl.store(p_share + groups, share)
    for side in tl.static_range(2):  # pyright: ignore[reportGeneralTypeIssues]
        b_lse = tl.load((p_negatives if side else p_positives) + row, mask, 0.0)
        b_factor = tl.load((p_grad_n if side else p_grad_p) + row, mask, 0.0) / share * GAIN
        empty = b_lse == -INF
        b_log = b_lse * LOG2_E
        if SHIFTED:
            b_factor *= tl.exp2(shift - b_log)
        else:
            tl.store(p_log + side * total + out, tl.where(empty, INF, b_log), mask)
        tl.store(p_factor + side * total + out, tl.where(empty, 0.0, b_factor), mask)
    b_sum = tl.load(p_grad_sum + row, mask, 0.0) / share * GAIN if SUM else tl.zeros([BLOCK], tl.float32)
    tl.store(p_factor + 2 * total + out, b_sum, mask)


@triton.jit
def share(b_s, b_factor, b_log, b_w, WEIGHTED: tl.constexpr, SHIFTED: tl.constexpr):
    """W of a tile, from what its anchors and keys have along its axes; b_s holds exponentials where SHIFTED."""
    if SHIFTED:
        return b_s * (b_factor * b_w) if WEIGHTED else b_s * b_factor
    return tl.exp2((b_s + b_w if WEIGHTED else b_s) - b_log) * b_factor


@triton.jit
def deliver(
    p_parts, p_points, p_order, p_out, o_x, end, size, between, chunks, stride_n, stride_d, out_n, out_d,
    D: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """The gradients of places, in chunks `between` apart, to their points; rows from `end` on have none.

    Where z are the unit vectors of x: dx = (dz - z <z, dz>) / |x|.
    """
    o_d, m_x = tl.arange(0, D), o_x < end
    mask = (o_x < size)[:, None] & (o_d < WIDTH)[None, :]
    p_parts += o_x.to(tl.int64)[:, None] * WIDTH + o_d[None, :]
    b_grad = tl.load(p_parts, mask, 0.0)
    for chunk in range(1, chunks):
        b_grad += tl.load(p_parts + chunk * between, mask, 0.0)
    row = tl.load(p_order + o_x, o_x < size, 0)
    if UNIT:
        b_z, b_length = unit(rows_of(p_points, row, m_x, stride_n, stride_d, D, WIDTH))
        b_grad = (b_grad - b_z * tl.sum(b_z * b_grad, 1)[:, None]) / b_length[:, None]
    out = row.to(tl.int64)[:, None] * out_n + o_d.to(tl.int64)[None, :] * out_d
    tl.store(p_out + out, tl.where(m_x[:, None], b_grad, 0.0), mask)


@triton.jit(do_not_specialize=["size", "tiles", "chunks"], do_not_specialize_on_alignment=LAYOUT)
def add_up(
    p_parts, p_points, p_order, p_count, p_out, size, tiles, chunks, stride_g, stride_n, stride_d, out_g, out_n, out_d,
    BLOCK: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, UNIT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """What `weigh` does at its end, of the sum of its chunks."""
    i_t, i_g = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    between = (tl.num_programs(0) // tiles).to(tl.int64) * size * WIDTH
    end = tl.load(p_count + i_g) if COLUMNS else size
    deliver(
        p_parts + i_g * size * WIDTH, p_points + i_g * stride_g, p_order + i_g * size, p_out + i_g * out_g,
        i_t * BLOCK + tl.arange(0, BLOCK), end, size, between, chunks, stride_n, stride_d, out_n, out_d, D, WIDTH, UNIT,
    )  # fmt: skip


@triton.jit(do_not_specialize=[*LOOSE, "upstream_g"], do_not_specialize_on_alignment=LAYOUT)
def weigh(
    p_x, p_y, p_lo, p_hi, p_itself, p_factor, p_log, p_count, p_weight, p_shift, p_share, p_upstream, p_parts,
    p_points, p_order, p_out, n, m, x_padded, y_padded, tiles, chunks, scale, upstream_g,
    stride_g, stride_n, stride_d, out_g, out_n, out_d,
    BLOCK_X: tl.constexpr, BLOCK_Y: tl.constexpr, NARROW: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, SELF: tl.constexpr, WEIGHTED: tl.constexpr, SHIFTED: tl.constexpr,
    UNIT: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Parts (chunks, G, rows of x, WIDTH), each over a share of y; WHOLE: there is one, and from it the gradients of x.

    itself, factor and log are of the n anchors, weights of the m keys (w where SHIFTED, else log2 w), lo and hi of x.
    SELF as in `rows`. The factors are worth `scale` times the share of the group, that of all, and
    the upstream gradient of the group.
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
        b_w_x, own, log_p, log_n, b_sum = 0.0, 0, 0.0, 0.0, 0.0  # where nothing else is said below
        if ROWS:
            factor_p = tl.load(p_factor + o_x, m_x, 0.0)[:, None]
            factor_n = tl.load(p_factor + total + o_x, m_x, 0.0)[:, None]
            b_sum = tl.load(p_factor + 2 * total + o_x, m_x, 0.0)[:, None]
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
                b_share += tl.where(positive, b_sum, 0.0)
                if SELF == "given":
                    b_share = tl.where(o_y[None, :] == own, 0.0, b_share)
            if COLUMNS:
                side = tl.where(positive, 0, total)
                log_y = 0.0 if SHIFTED else tl.load(p_log + side + o_y)[None, :]
                b_other = share(b_s, tl.load(p_factor + side + o_y)[None, :], log_y, b_w_x, WEIGHTED, SHIFTED)
                b_other += tl.where(positive, tl.load(p_factor + 2 * total + o_y), 0.0)[None, :]
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
                b_share += tl.where(m_positive, b_sum, 0.0)
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
                b_other += tl.where(m_positive, tl.load(p_factor + 2 * total + o_y, m_y, 0.0)[None, :], 0.0)
                if SELF == "given":
                    b_other = tl.where(o_x[:, None] == tl.load(p_itself + o_y, m_y, -1)[None, :], 0.0, b_other)
                b_share = b_share + b_other if ROWS else b_other
            b_share = tl.where(m_pair, b_share, 0.0)
            b_grad = tl.dot(b_share.to(b_y.dtype), b_y, b_grad, input_precision=PRECISION)
        worth = tl.load(p_share + i_g) * tl.load(p_share + groups) * tl.load(p_upstream + i_g * upstream_g) * scale
        b_grad = tl.where(m_x[:, None], b_grad * worth, 0.0)
    p_parts += ((i_c.to(tl.int64) * groups + i_g) * size) * WIDTH
    part = p_parts + i_x.to(tl.int64) * WIDTH + o_r[:, None] * WIDTH + o_d[None, :]
    tl.store(part, b_grad, (o_x < size)[:, None] & (o_d[None, :] < WIDTH))
    if WHOLE:  # a few rows at a time: all at once they would take more registers than the loops
        tl.debug_barrier()  # the part is read by other threads than wrote it
        p_points, p_out = p_points + i_g.to(tl.int64) * stride_g, p_out + i_g.to(tl.int64) * out_g
        for start in range(0, BLOCK_X, ROWS_AT_ONCE):
            deliver(
                p_parts, p_points, p_order + i_g.to(tl.int64) * size, p_out, i_x + start + tl.arange(0, ROWS_AT_ONCE),
                x_end, size, 0, 1, stride_n, stride_d, out_n, out_d, D, WIDTH, UNIT,
            )  # fmt: skip
