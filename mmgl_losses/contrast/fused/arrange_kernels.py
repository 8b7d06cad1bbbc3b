"""The kernel in front of the others: points to unit vectors, scaled, rounded, and sorted by id.

Each point's place is the number of points that come before it, and its positives are the places [lo, hi): with few
points a program counts over all ids of its group, which is less work than to start a sort; with many (SORTED) the
order is given. So one launch turns points in any layout into what tiles of pairs are made of.
"""

# To a type checker a kernel is the Python function that it looks like.
# pyright: reportOperatorIssue=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl

INF = tl.constexpr(float("inf"))
LAYOUT = ["stride_g", "stride_n", "stride_d"]  # it matters alone whether one of them is 1
COUNTS = ["n", "m", "padded", "tiles", "ids_g", "other_g"]  # values that come and go: no kernel of their own for each


@triton.jit
def rows_of(p_x, row, mask, stride_n, stride_d, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of points (N, WIDTH) in any layout, in float32, with zeros up to D and where the mask says."""
    o_d = tl.arange(0, D)
    place = row.to(tl.int64)[:, None] * stride_n + o_d.to(tl.int64)[None, :] * stride_d
    return tl.load(p_x + place, mask[:, None] & (o_d < WIDTH)[None, :], 0.0).to(tl.float32)


@triton.jit
def unit(b_x):
    """Unit vectors and lengths of rows, huge ones and tiny ones too; a zero vector is divided by infinity."""
    b_largest = tl.max(tl.abs(b_x), 1)
    b_largest = tl.where(b_largest == 0, INF, b_largest)
    b_z = b_x / b_largest[:, None]
    b_length = tl.sqrt(tl.sum(b_z * b_z, 1))
    b_length = tl.where(b_length < 1, 1.0, b_length)  # of its largest element alone: 1; NaN stays
    return b_z / b_length[:, None], b_length * b_largest


@triton.jit
def ends(id_y, part_y, id_x, tolerance, SIDE: tl.constexpr):
    """How many y come before the positives of each x, and how many are positives or come before them.

    Where x are keys, y are the anchors, and they have the range. Where both are one, y is a positive of x as x is of y,
    in spite of rounding.
    """
    m_below = id_y + tolerance < id_x if SIDE == "keys" else id_y < id_x - tolerance
    m_reached = id_y <= id_x + tolerance if SIDE == "anchors" else id_y - tolerance <= id_x
    return tl.sum((part_y & m_below).to(tl.int32), 1), tl.sum((part_y & m_reached).to(tl.int32), 1)


@triton.jit(do_not_specialize=COUNTS, do_not_specialize_on_alignment=LAYOUT)
def arrange(
    p_x, p_ids, p_part, p_other_ids, p_other_part, p_tolerance, p_chosen, p_key_place,
    p_operand, p_order, p_place, p_lo, p_hi, p_count, p_itself, p_shift, p_ticket,
    n, m, padded, tiles, ids_g, other_g, stride_g, stride_n, stride_d, scale, shift,
    BLOCK: tl.constexpr, STEP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, SIDE: tl.constexpr,
    UNIT: tl.constexpr, SORTED: tl.constexpr, MASKED: tl.constexpr, OTHER_MASKED: tl.constexpr,
    RANGES: tl.constexpr, SELF: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Write the operand (G, padded, D), and of each place its point, its range and its own key (SELF: "given").

    SIDE: x are "anchors", "keys" or the "same" points as those of the other side. Points outside of `part` come last.
    SORTED: `order` is there already, and so are `lo`, `hi` and `count`. SHIFT: this launch writes the shift, too.
    """
    i_t, i_g = tl.program_id(0) % tiles, (tl.program_id(0) // tiles).to(tl.int64)
    if tl.program_id(0) == 0:
        tl.store(p_ticket, 0)
        if SHIFT:
            tl.store(p_shift, shift)
    base, o_x = i_g * n, i_t * BLOCK + tl.arange(0, BLOCK)
    m_x = o_x < n
    row, place = o_x, o_x
    if SORTED:
        row = tl.load(p_order + base + o_x, m_x, 0).to(tl.int32)
    m_part = m_x
    if MASKED:
        m_part = tl.load(p_part + base + row, m_x, 0) != 0
    if not SORTED:
        p_ids, p_other_ids = p_ids + i_g * ids_g, p_other_ids + i_g * other_g
        id_x = tl.load(p_ids + row, m_x, 0)[:, None]
        b_rank = tl.zeros([BLOCK], tl.int32)
        tolerance = tl.load(p_tolerance) if RANGES else 0
        b_lo, b_hi = tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int32)
        b_count = tl.zeros([STEP], tl.int32)
        for start in range(0, n, STEP):
            o_y = start + tl.arange(0, STEP)
            part_y = o_y < n
            id_y = tl.load(p_ids + o_y, part_y, 0)[None, :]
            m_before = (id_y < id_x) | ((id_y == id_x) & (o_y[None, :] < o_x[:, None]))
            if MASKED:
                part_y = part_y & (tl.load(p_part + base + o_y, part_y, 0) != 0)
                m_before = tl.where(part_y[None, :] == m_part[:, None], m_before, part_y[None, :])
            b_rank += tl.sum((m_before & (o_y < n)[None, :]).to(tl.int32), 1)
            if SIDE == "same":
                b_count += part_y.to(tl.int32)
                b_below, b_reached = ends(id_y, part_y[None, :], id_x, tolerance, SIDE)
                b_lo += b_below
                b_hi += b_reached
        place = tl.where(m_x, b_rank, o_x)
        if SIDE != "same":
            for start in range(0, m, STEP):
                o_y = start + tl.arange(0, STEP)
                part_y = o_y < m
                id_y = tl.load(p_other_ids + o_y, part_y, 0)[None, :]
                if OTHER_MASKED:
                    part_y = part_y & (tl.load(p_other_part + i_g * m + o_y, part_y, 0) != 0)
                b_count += part_y.to(tl.int32)
                b_below, b_reached = ends(id_y, part_y[None, :], id_x, tolerance, SIDE)
                b_lo += b_below
                b_hi += b_reached
        tl.store(p_order + base + place, row, m_x)
        tl.store(p_lo + base + place, b_lo, m_x)
        tl.store(p_hi + base + place, b_hi, m_x)
        count = tl.sum(b_count, 0)
        if i_t == 0:
            tl.store(p_count + i_g, count)
    else:
        count = tl.load(p_count + i_g)
    tl.store(p_place + base + row, place, m_x)
    if SELF == "given":
        b_key = tl.load(p_chosen + base + row, m_x, -1)
        b_own = tl.load(p_key_place + i_g * m + b_key, m_x & (b_key >= 0), -1)
        tl.store(p_itself + base + place, tl.where(b_own < count, b_own, -1), m_x)
    b_x = rows_of(p_x + i_g * stride_g, row, m_part, stride_n, stride_d, D, WIDTH)
    if UNIT:
        b_x, _ = unit(b_x)
    out = p_operand + i_g * padded * D + place.to(tl.int64)[:, None] * D + tl.arange(0, D)[None, :]
    tl.store(out, b_x * scale)
