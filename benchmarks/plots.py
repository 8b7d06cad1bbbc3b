"""``python -m benchmarks plots CSV``: time and peak memory of the local loss against the number of points."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from benchmarks import table
from benchmarks.case import Row

OURS = "#c0392b"
COLOURS = {
    "plain": "#4c72b0",
    "plain, compiled": "#1b9e77",
    "flex_attention": "#8172b3",
    "SupContrast style": "#b7791f",
    "pytorch-metric-learning": "#7f7f7f",
    "two products": "#222222",
}
NAMES = {"two products": "two bare products", "fused": "ours", "auto": "ours"}
QUANTITIES = {"time": "milliseconds an image, forward and backward", "memory": "peak memory above the inputs, MiB"}
GAP = 0.062  # of the height, between two names
WIDE = 0.3  # of the width, for a name
ROOM = 0.66  # of the width, for the curves; names have the rest


class Curve(NamedTuple):
    """A contestant's points, ascending."""

    name: str
    points: list[tuple[float, float]]


def draw(path: Path, folder: Path) -> list[Path]:
    """Both figures of a file of results, as PNG, named after it.

    Args:
        path: the CSV file of ``python -m benchmarks``.
        folder: where the figures go.

    Returns:
        The paths written.
    """
    rows, where = table.read(path)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for quantity in QUANTITIES:
        figure = figure_of(rows, where, quantity)
        written.append(folder / f"benchmark-{path.stem}-{quantity}.png")
        figure.savefig(written[-1], dpi=150)
    return written


def curves(rows: Sequence[Row], quantity: str, d: int) -> list[Curve]:
    """The contestants that have points, ours last."""
    fused = any(row.contestant == "fused" and row.seconds for row in rows)
    found = []
    for name in [*COLOURS, "fused" if fused else "auto"]:
        points = [(float(row.n), value(row, quantity)) for row in rows if (row.contestant, row.d) == (name, d)]
        points = sorted((n, y) for n, y in points if y)
        if points and not (name == "two products" and quantity == "memory"):
            found.append(Curve(name, points))
    return found


def value(row: Row, quantity: str) -> float:
    """What is drawn of a row; 0 where it was not measured."""
    return (row.seconds or 0.0) * 1e3 / row.batch if quantity == "time" else max(row.peak_mib or 0.0, 0.0)


def figure_of(rows: Sequence[Row], where: dict[str, str], quantity: str) -> Figure:
    """One panel for each length of the features, with the type that was measured first."""
    rows = [row for row in rows if row.kind == "local"]
    dtype = next((row.dtype for row in rows if row.seconds), "")
    rows = [row for row in rows if row.dtype == dtype]
    panels = {d: curves(rows, quantity, d) for d in sorted({row.d for row in rows})}
    panels = {d: found for d, found in panels.items() if found}
    figure = Figure(figsize=(5.4 * max(len(panels), 1), 4.2), layout="constrained")
    if not panels:
        return figure
    xs, ys = zip(*(point for found in panels.values() for curve in found for point in curve.points), strict=True)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (d, found) in zip(axes, panels.items(), strict=True):
        left = quantity == "time"  # where the ends of the lines are apart
        frame(axis, (min(xs), max(xs)), (min(ys), max(ys)), left=left)
        panel(axis, found, left=left)
        axis.set_title(f"{d} features, {dtype}", fontsize=10, loc="left")
        axis.set_xlabel(f"points of an image ({images(rows)})", fontsize=9)
    axes[0].set_ylabel(QUANTITIES[quantity], fontsize=9)
    threads = "" if torch_device(where) else f", {where.get('threads', '?')} threads"
    figure.suptitle(f"{where.get('device', '')}{threads}", fontsize=8, color="#666666", x=0.99, ha="right")
    return figure


def torch_device(where: dict[str, str]) -> bool:
    """Whether the figures come from a GPU, where threads do not count."""
    return "NVIDIA" in where.get("device", "")


def images(rows: Sequence[Row]) -> str:
    """How many images there are at once."""
    sizes = {batch: max(row.n for row in rows if row.batch == batch) for batch in {row.batch for row in rows}}
    ordered = sorted(sizes.items(), key=lambda item: item[1])
    if len(ordered) == 1:
        return f"{ordered[0][0]} at once"
    return ", ".join(f"{batch} at once up to {n:,}" for batch, n in ordered[:-1]) + f", then {ordered[-1][0]}"


def frame(axis: Axes, x: tuple[float, float], y: tuple[float, float], *, left: bool) -> None:
    """Both axes logarithmic, with room for names on one side."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    names = max(x[1] / x[0], 3.0) ** (1 / ROOM - 1)
    axis.set_xlim(x[0] / (names if left else 1.25), x[1] * (1.25 if left else names))
    axis.set_ylim(y[0] / 4, y[1] * 1.6)
    axis.grid(alpha=0.25, linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)


def panel(axis: Axes, found: Sequence[Curve], *, left: bool) -> None:
    """Curves with their names at the ends of the lines; ours stands out, the limit is dashed."""
    for curve in found:
        ours, limit = curve.name in ("auto", "fused"), curve.name == "two products"
        axis.plot(
            *zip(*curve.points, strict=True),
            color=COLOURS.get(curve.name, OURS),
            linewidth=3.0 if ours else 1.3,
            linestyle=(0, (4, 2)) if limit else "-",
            marker="o",
            markersize=5.5 if ours else 3.0,
            zorder=4 if ours else 3 if limit else 2,
        )
    end, aside = (0, -0.025) if left else (-1, 0.025)
    ends = [(across(axis, x) + aside, height(axis, y)) for x, y in (curve.points[end] for curve in found)]
    for curve, (x, _), y in zip(found, ends, spread(ends), strict=True):
        ours = curve.name in ("auto", "fused")
        axis.annotate(
            NAMES.get(curve.name, curve.name),
            xy=curve.points[end],
            xytext=(x, y),
            textcoords="axes fraction",
            fontsize=9 if ours else 8,
            fontweight="bold" if ours else "normal",
            color=COLOURS.get(curve.name, OURS),
            ha="right" if left else "left",
            va="center",
            zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # it may cross another curve
        )


def height(axis: Axes, y: float) -> float:
    """Where a value is, as a share of the height."""
    low, high = map(math.log, axis.get_ylim())
    return (math.log(y) - low) / (high - low)


def across(axis: Axes, x: float) -> float:
    """Where a value is, as a share of the width."""
    low, high = map(math.log, axis.get_xlim())
    return (math.log(x) - low) / (high - low)


def spread(places: Sequence[tuple[float, float]]) -> list[float]:
    """Heights of names that start at (x, y), moved down where one would lie on another; the highest stays.

    Example:
        >>> spread([(0.5, 0.5), (0.5, 0.1), (0.5, 0.5), (0.1, 0.5)])
        [0.5, 0.1, 0.438, 0.5]
    """
    placed: dict[int, float] = {}
    for i in sorted(range(len(places)), key=lambda i: -places[i][1]):
        x, y = places[i]
        for j, other in sorted(placed.items(), key=lambda item: -item[1]):
            if abs(places[j][0] - x) < WIDE and abs(other - y) < GAP:
                y = other - GAP
        placed[i] = y
    return [placed[i] for i in range(len(places))]
