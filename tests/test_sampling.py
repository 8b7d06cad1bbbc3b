"""Points, labels and features hold the same place, for any size."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgl_losses import sampling
from tests import oracles

sizes = st.integers(1, 40)


@given(size=sizes, m=sizes)
def test_places_hold_the_points(size, m):
    assert sampling.places(size, m).tolist() == oracles.places(size, m)


@given(size=sizes, m=sizes)
def test_places_are_symmetric_but_for_ties(size, m):
    """Mirrored, a point lies in the mirrored element, unless it lies on a border."""
    found = sampling.places(size, m).tolist()
    for i, p in enumerate(found):
        on_border = (2 * i + 1) * size % (2 * m) == 0
        assert size - 1 - found[m - 1 - i] == p - on_border


@given(full=st.integers(8, 64), depth=st.integers(0, 3), stride=st.integers(1, 4))
def test_features_and_labels_hold_the_same_place(full, depth, stride):
    """A level sampled by the head, and the labels brought straight to that size, are less than an element apart."""
    level = math.ceil(full / 2**depth)
    m = sampling.strided(level, stride)
    position = (torch.arange(level) + 0.5) / level  # what each element of the level stands for
    by_head = sampling.resample(position, (m,))
    by_label = sampling.resample((torch.arange(full) + 0.5) / full, (m,))
    point = (torch.arange(m) + 0.5) / m
    assert (by_head - point).abs().max() <= 0.5 / level + 1e-6
    assert (by_label - point).abs().max() <= 0.5 / full + 1e-6


@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=3), stride=st.integers(1, 5), data=st.data())
def test_resample_indexes_each_axis(shape, stride, data):
    x = torch.arange(math.prod(shape)).reshape(1, *shape)
    small = sampling.subsample(x, stride, first=1)
    index = [oracles.places(n, math.ceil(n / stride)) for n in shape]
    for where in data.draw(st.lists(st.tuples(*(st.integers(0, len(i) - 1) for i in index)), max_size=5)):
        source = tuple(i[w] for i, w in zip(index, where, strict=True))
        assert small[(0, *where)] == x[(0, *source)]


def test_resample_returns_the_same_tensor_where_nothing_changes():
    x = torch.zeros(2, 3, 8)
    assert sampling.resample(x, (3, 8)) is x


def test_points_are_in_the_order_of_flattened_labels():
    labels = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    features = torch.stack([labels, -labels], 1).float()
    torch.testing.assert_close(sampling.points(features)[..., 0], labels.flatten(1).float())


@given(
    labels=st.lists(st.integers(0, 3), min_size=36, max_size=36),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_foreground_places_keep_what_a_cell_holds(labels, size):
    """In every cell the pick is the rarest label of the image that the cell holds; background only if alone."""
    y = torch.tensor(labels).reshape(1, 6, 6)
    chosen = sampling.foreground_places(y, size, excluded=(0,))[0].tolist()
    count = {k: labels.count(k) for k in range(4)}
    for cell, place in enumerate(chosen):
        row, column = divmod(cell, size[1])
        members = [(a, b) for a in range(6) for b in range(6) if a * size[0] // 6 == row and b * size[1] // 6 == column]
        assert divmod(place, 6) in members
        held = {int(y[0, a, b]) for a, b in members}
        best = min(count[k] for k in held - {0}) if held - {0} else None
        picked = labels[place]
        assert (picked == 0 and held == {0}) if best is None else (picked != 0 and count[picked] == best)


def test_foreground_places_keep_a_single_pixel():
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[0, 3, 9] = 5
    assert 5 not in sampling.subsample(labels, 4, first=1)
    chosen = sampling.foreground_places(labels, (4, 4), excluded=(0,))
    assert (labels.flatten(1).gather(1, chosen) == 5).sum() == 1
