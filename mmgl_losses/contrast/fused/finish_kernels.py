"""What ends the forward: from sums of pairs to the results of each anchor, or right to the loss and its derivatives.

Parts are in units of log 2, in the order of places. `results` gives them back in the order of the points. `losses`
evaluates a formula where the numbers lie, takes the mean over the anchors that count, and leaves for the backward what
multiplies the exponentials of each: no anchor's term is written down.
"""

# To a type checker a kernel is the Python function that it looks like.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

from mmgl_losses.contrast.fused.arrange_kernels import INF

LN_2 = tl.constexpr(0.6931471805599453)
LOOSE = ["n", "chunks", "blocks", "groups"]


@triton.jit
def together(b_p, b_q):
    """log2(2^p + 2^q)."""
    b_max = tl.maximum(b_p, b_q)
    b_max = tl.where(b_max == -INF, 0.0, b_max)
    return b_max + tl.log2(tl.exp2(b_p - b_max) + tl.exp2(b_q - b_max))


@triton.jit
def merged(p_parts, o, mask, total, chunks, shift, SUM: tl.constexpr, CREDIT: tl.constexpr):
    """Both log-sum-exps and the sum of anchors, from the sums of `credit` or the parts of `rows`."""
    b_p, b_q = tl.load(p_parts + o, mask, 0.0), tl.load(p_parts + total + o, mask, 0.0)
    b_sum = tl.load(p_parts + 2 * total + o, mask, 0.0) if SUM else tl.zeros_like(b_p)
    if CREDIT:
        return tl.log2(b_p) + shift, tl.log2(b_q) + shift, b_sum
    for chunk in range(1, chunks):
        p_part = p_parts + 3 * chunk * total + o
        b_p = together(b_p, tl.load(p_part, mask, 0.0))
        b_q = together(b_q, tl.load(p_part + total, mask, 0.0))
        if SUM:
            b_sum += tl.load(p_part + 2 * total, mask, 0.0)
    return b_p, b_q, b_sum


@triton.jit
def numbers(p_lo, p_hi, p_itself, p_count, p_order, p_mask, i_g, n, o_x, SELF: tl.constexpr, MASKED: tl.constexpr):
    """Positives and negatives of each anchor (none, where it does not count), and which point it is."""
    base, count = i_g * n, tl.load(p_count + i_g)
    m_part = o_x < (count if SELF == "same" else n)
    lo, hi = tl.load(p_lo + base + o_x, m_part, 0), tl.load(p_hi + base + o_x, m_part, 0)
    row = tl.load(p_order + base + o_x, o_x < n, 0)
    b_p = hi - lo
    b_q = count - b_p
    if SELF != "none":
        own = tl.load(p_itself + base + o_x, m_part, -1) if SELF == "given" else o_x
        m_own = (own >= lo) & (own < hi)
        b_p -= m_own.to(tl.int32)
        b_q -= ((own >= 0) & ~m_own).to(tl.int32)
    if MASKED:
        m_part = m_part & (tl.load(p_mask + base + row, m_part, 0) != 0)
    return tl.where(m_part, b_p, 0), tl.where(m_part, b_q, 0), row


@triton.jit(do_not_specialize=LOOSE)
def results(
    p_parts, p_lo, p_hi, p_itself, p_count, p_order, p_mask, p_shift,
    p_positives, p_negatives, p_sum, p_n_positives, p_n_negatives, n, chunks, blocks,
    BLOCK: tl.constexpr, SELF: tl.constexpr, MASKED: tl.constexpr, CREDIT: tl.constexpr, SHIFTED: tl.constexpr,
    BOTH: tl.constexpr,
):  # fmt: skip
    """The results (G, n) in the order of the points, in natural units. BOTH: parts have the shift if it fits."""
    shift = tl.load(p_shift)
    if not BOTH:  # noqa: SIM102 - Triton leaves out what hangs on a constant alone
        if (shift == shift) != SHIFTED:
            return
    i_g, groups = (tl.program_id(0) // blocks).to(tl.int64), (tl.num_programs(0) // blocks).to(tl.int64)
    o_x = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < n
    b_p, b_q, b_sum = merged(p_parts, i_g * n + o_x, m_x, groups * n, chunks, shift, True, CREDIT)
    number_p, number_q, row = numbers(
        p_lo, p_hi, p_itself, p_count, p_order, p_mask, i_g, n, o_x, SELF, MASKED
    )  # fmt: skip
    out = i_g * n + row
    tl.store(p_positives + out, tl.where(number_p > 0, b_p * LN_2, -INF), m_x)
    tl.store(p_negatives + out, tl.where(number_q > 0, b_q * LN_2, -INF), m_x)
    tl.store(p_sum + out, tl.where(number_p > 0, b_sum * LN_2, 0.0), m_x)
    tl.store(p_n_positives + out, number_p, m_x)
    tl.store(p_n_negatives + out, number_q, m_x)


@triton.jit
def formula(b_p, b_q, b_sum, number, NAME: tl.constexpr):
    """The loss of anchors in units of log 2, and its derivatives by both log-sum-exps and by the sum.

    As `losses.formulas` has them. p are the positives, q the negatives, r both, o the sum, |P| the number of positives.
    """
    b_one = number * 0.0 + 1.0
    if NAME == "mmgl_local":  # (q - p) / |P|
        return (b_q - b_p) / number, -b_one / number, b_one / number, b_one * 0.0
    if NAME == "decoupled":  # q - o / |P|
        return b_q - b_sum / number, b_one * 0.0, b_one, -b_one / number
    b_r = together(b_p, b_q)
    by_p, by_q = tl.exp2(b_p - b_r), tl.exp2(b_q - b_r)
    if NAME == "supcon_in":  # r - p + log |P|
        return b_r - b_p + tl.log2(number), by_p - 1.0, by_q, b_one * 0.0
    return b_r - b_sum / number, by_p, by_q, -b_one / number  # supcon: r - o / |P|


@triton.jit(do_not_specialize=LOOSE)
def losses(
    p_parts, p_lo, p_hi, p_itself, p_count, p_order, p_mask, p_shift,
    p_factor, p_log, p_partial, p_ticket, p_loss, p_share, n, chunks, blocks, weight,
    BLOCK: tl.constexpr, SELF: tl.constexpr, MASKED: tl.constexpr, CREDIT: tl.constexpr, SHIFTED: tl.constexpr,
    NAME: tl.constexpr, NEGATIVES: tl.constexpr, AVERAGE: tl.constexpr, GAIN: tl.constexpr,
):  # fmt: skip
    """The mean loss of each group (G,), or with AVERAGE the mean of these over the groups with any anchor; weighted.

    For the backward: factors (3, G, n) and logs (2, G, n) as `weigh` takes them, and an anchor's share (G + 1,) of the
    loss: one number for each group, and one for all of them. Programs leave sums of blocks; the one that is last adds
    them up, in the same order each time.
    """
    i_g, groups = (tl.program_id(0) // blocks).to(tl.int64), tl.num_programs(0) // blocks
    o_x = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    m_x, total, shift = o_x < n, groups.to(tl.int64) * n, tl.load(p_shift)
    SUM: tl.constexpr = NAME == "supcon" or NAME == "decoupled"
    b_p, b_q, b_sum = merged(p_parts, i_g * n + o_x, m_x, total, chunks, shift, SUM, CREDIT)
    number_p, number_q, _ = numbers(
        p_lo, p_hi, p_itself, p_count, p_order, p_mask, i_g, n, o_x, SELF, MASKED
    )  # fmt: skip
    m_valid = number_p > 0
    if NEGATIVES:
        m_valid = m_valid & (number_q > 0)
    b_p, b_q = tl.where(number_p > 0, b_p, -INF), tl.where(number_q > 0, b_q, -INF)
    b_loss, by_p, by_q, by_sum = formula(b_p, b_q, b_sum, tl.maximum(number_p, 1).to(tl.float32), NAME)

    out = i_g * n + o_x
    if SHIFTED:
        by_p, by_q = by_p * tl.exp2(shift - b_p), by_q * tl.exp2(shift - b_q)
    else:
        tl.store(p_log + out, tl.where(b_p == -INF, INF, b_p), m_x)
        tl.store(p_log + total + out, tl.where(b_q == -INF, INF, b_q), m_x)
    tl.store(p_factor + out, tl.where(m_valid & (b_p != -INF), by_p * GAIN, 0.0), m_x)
    tl.store(p_factor + total + out, tl.where(m_valid & (b_q != -INF), by_q * GAIN, 0.0), m_x)
    tl.store(p_factor + 2 * total + out, tl.where(m_valid, by_sum * GAIN, 0.0), m_x)

    programs = tl.num_programs(0)
    tl.store(p_partial + tl.program_id(0), tl.sum(tl.where(m_valid, b_loss, 0.0), 0) * LN_2)
    tl.store(p_partial + programs + tl.program_id(0), tl.sum(m_valid.to(tl.float32), 0))
    tl.debug_barrier()  # what this program has stored is seen by whoever sees its ticket
    if tl.atomic_add(p_ticket, 1, sem="acq_rel") % programs == programs - 1:
        average(p_partial, p_loss, p_share, groups, blocks, weight, BLOCK, AVERAGE)


@triton.jit
def average(p_partial, p_loss, p_share, groups, blocks, weight, BLOCK: tl.constexpr, AVERAGE: tl.constexpr):
    """From the sums and numbers of blocks (2, G, blocks) to means, and what an anchor's loss counts in them."""
    o, mean, some = tl.arange(0, BLOCK), 0.0, 0.0
    for g in range(groups):
        b_sum, b_number = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
        for start in range(0, blocks, BLOCK):
            mask = start + o < blocks
            b_sum += tl.load(p_partial + g * blocks + start + o, mask, 0.0)
            b_number += tl.load(p_partial + (groups + g) * blocks + start + o, mask, 0.0)
        number = tl.maximum(tl.sum(b_number, 0), 1.0)
        if AVERAGE:
            some += tl.where(tl.sum(b_number, 0) > 0, 1.0, 0.0)
            mean += tl.sum(b_sum, 0) / number
        else:
            tl.store(p_loss + g, tl.sum(b_sum, 0) / number * weight)
        tl.store(p_share + g, 1.0 / number)
    some = tl.maximum(some, 1.0)
    if AVERAGE:
        tl.store(p_loss, mean / some * weight)
    tl.store(p_share + groups, weight / some)
