"""Which points a level has: the one rule that maps places of the image to points of a level.

Point ``i`` of ``m`` stands for the place ``(i + 1/2) / m`` of an axis. A feature and its label are both found
by this rule, so they always belong to the same place, whatever the sizes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmgl_losses import checks


def places(size: int, m: int, *, device: torch.device | None = None) -> Tensor:
    r"""The `m` indices in an axis of `size` that hold its points ``(i + 1/2) / m``.

    .. math:: p_i = \lfloor (2i + 1) \cdot size / 2m \rfloor, \quad i = 0 \dots m - 1

    Args:
        size: number of elements of the axis, at least 1.
        m: number of points, at least 1. More points than elements repeat elements (nearest neighbour).
        device: where they are made.

    Returns:
        int64 (m,), ascending, each in ``[0, size)``.

    Raises:
        TypeError: `size` or `m` is not an integer.
        ValueError: `size` or `m` is below 1.

    Example:
        >>> places(160, 40)[:3]
        tensor([ 2,  6, 10])
        >>> places(5, 2)
        tensor([1, 3])
    """
    _size("size", size, 1)
    _size("m", m, 1)
    return (2 * torch.arange(m, device=device) + 1) * size // (2 * m)


def _size(name: str, size: int, least: int) -> None:
    """A size is an integer, or a symbol for one while a program of any size is exported."""
    if not isinstance(size, torch.SymInt):
        checks.integer(name, size, least=least)


def strided(size: int, stride: int) -> int:
    """The number of points that `stride` leaves of `size`: ``ceil(size / stride)``.

    Example:
        >>> strided(10, 4)
        3
    """
    _size("size", size, 0)
    checks.integer("stride", stride, least=1)
    points = (size + stride - 1) // stride
    if isinstance(points, torch.SymInt):  # for a size of 1 or more: older exporters do not see that a point is left
        return torch.sym_max(points, 1)  # pyright: ignore[reportReturnType]
    return points


def resample(x: Tensor, size: Sequence[int]) -> Tensor:
    """The elements of `x` at `places`, for each of its last ``len(size)`` axes.

    Indexing only: labels remain labels, and gradients reach the elements picked. Where every k-th element is picked,
    the result is a view.

    Args:
        x: (..., *spatial), of any type.
        size: the points wanted along each of the last axes.

    Returns:
        (..., *size); `x` itself where nothing changes.

    Example:
        >>> resample(torch.arange(10), (3,))
        tensor([1, 5, 8])
    """
    first = checks.tensor("x", x).ndim - len(size)
    if first < 0:
        expected = f"`x` of at least {len(size)} axes, one for each size"
        raise ValueError(checks.message(expected, f"shape {checks.shape(x)}"))
    for axis, m in enumerate(size, start=first):
        n = x.shape[axis]
        symbolic = isinstance(m, torch.SymInt) or isinstance(n, torch.SymInt)
        # A comparison of symbols would tie the program to some sizes.
        if not symbolic and n == m:
            continue
        _size("m", m, 1)
        if not symbolic and n and n % m == 0:
            every = n // m
            x = x[(slice(None),) * axis + (slice(every // 2, None, every),)]
        else:
            x = x.index_select(axis, places(n, m, device=x.device))
    return x


def subsample(x: Tensor, stride: int, first: int = 2) -> Tensor:
    """Every `stride`-th point of `x` along the axes from `first` on, by `places`.

    Example:
        >>> subsample(torch.zeros(2, 8, 10, 10), 4).shape
        torch.Size([2, 8, 3, 3])
    """
    return resample(x, [strided(size, stride) for size in x.shape[first:]])


def points(x: Tensor) -> Tensor:
    """A map (B, D, *spatial) as points (B, n, D), in the order of the flattened axes; a view where that can be.

    Example:
        >>> points(torch.zeros(2, 8, 3, 5)).shape
        torch.Size([2, 15, 8])
    """
    return x.flatten(2).mT


def foreground_places(labels: Tensor, size: Sequence[int], excluded: Sequence[int]) -> Tensor:
    """One point in each cell of a grid: the label that is rarest in its image, and of those the most central.

    A plain stride can delete the only pixel of a small structure; this keeps one wherever a cell holds one.

    Args:
        labels: (B, *spatial), integers.
        size: the grid; cell ``i`` of ``m`` along an axis of ``n`` holds the elements ``p`` with ``p * m // n == i``.
        excluded: labels that are taken only where a cell holds nothing else (background, ignored).

    Returns:
        int64 (B, prod(size)): flat spatial indices, in the order of the flattened grid.

    Example:
        >>> labels = torch.tensor([[0, 0, 0, 0, 0, 7, 0, 0]])
        >>> foreground_places(labels, (2,), excluded=(0,))
        tensor([[2, 5]])
    """
    batch, spatial = labels.shape[0], labels.shape[1:]
    device = labels.device
    cell = torch.zeros(spatial, dtype=torch.int64, device=device)
    distance = torch.zeros(spatial, dtype=torch.int64, device=device)
    for axis, (n, m) in enumerate(zip(spatial, size, strict=True)):
        column = [-1 if i == axis else 1 for i in range(len(spatial))]
        own = torch.arange(n, device=device) * m // n
        cell = cell * m + own.view(column)
        centre = places(n, m, device=device)[own]
        distance = distance + (torch.arange(n, device=device) - centre).abs().view(column)
    flat = labels.flatten(1).long()
    n = flat.shape[1]
    # How often each point's label occurs in its image: lengths of runs in the sorted labels.
    ordered = flat.sort(1).values
    count = torch.searchsorted(ordered, flat, right=True) - torch.searchsorted(ordered, flat)
    last = torch.isin(flat, torch.tensor(list(excluded), dtype=torch.int64, device=device))
    count = torch.where(last, n + 1, count)
    # The smallest key of a cell wins: rarest label, then nearest to the centre, then first.
    reach = sum(spatial) + 1
    key = (count * reach + distance.reshape(1, -1)) * n + torch.arange(n, device=device)
    cells = cell.reshape(1, -1).expand(batch, -1)
    best = torch.full((batch, math.prod(size)), torch.iinfo(torch.int64).max, device=device)
    return best.scatter_reduce(1, cells, key, "amin") % n
