"""Hypothesis strategies: problems drawn element by element, so that they shrink."""

import torch
from hypothesis import strategies as st
from torch import Tensor

# Multiples of 1/8 keep tolerances and equal distances exact.
eighths = st.integers(-16, 16).map(lambda i: i / 8)


@st.composite
def matrices(draw, rows: int, columns: int, elements=eighths) -> Tensor:
    """A float64 matrix (rows, columns)."""
    values = draw(st.lists(elements, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float64).reshape(rows, columns)


@st.composite
def unit_rows(draw, rows: int, columns: int) -> Tensor:
    """Unit vectors (rows, columns), float64; rows that would be zero point along the first axis."""
    x = draw(matrices(rows, columns))
    x[:, 0] += (x == 0).all(1)
    return torch.nn.functional.normalize(x, dim=1)


def masks(n: int):
    """A boolean vector of n elements."""
    return st.lists(st.booleans(), min_size=n, max_size=n).map(torch.tensor)


def label_vectors(n: int, classes: int = 3):
    """Integer labels of n points."""
    return st.lists(st.integers(0, classes - 1), min_size=n, max_size=n).map(torch.tensor)


@st.composite
def contrasts(draw) -> tuple[Tensor, Tensor, dict]:
    """Anchors (n, d), ids (n,) and options of the primitive, in float64, with every option present or absent."""
    n, d = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    anchors = draw(matrices(n, d))
    options: dict = {"temperature": draw(st.sampled_from([0.07, 0.5, 2.0]))}
    real = draw(st.booleans())
    ids = lambda k: draw(st.lists(eighths if real else st.integers(-2, 2), min_size=k, max_size=k).map(torch.tensor))  # noqa: E731
    m = n
    if draw(st.booleans()):
        m = draw(st.integers(1, 9))
        options["keys"], options["key_ids"] = draw(matrices(m, d)), ids(m)
        if draw(st.booleans()):
            options["self_index"] = torch.tensor(draw(st.lists(st.integers(-1, m - 1), min_size=n, max_size=n)))
    if draw(st.booleans()):
        options["anchor_mask"] = draw(masks(n))
    if draw(st.booleans()):
        options["key_mask"] = draw(masks(m))
    if draw(st.booleans()):
        options["key_log_weights"] = draw(matrices(m, 1))[:, 0]
    if draw(st.booleans()):
        options["tolerance"] = draw(st.sampled_from([0.0, 0.125, 1.0]))
    return anchors, ids(n), options
