"""All figures. Every one takes any number of methods and structures: no line is left out, no legend runs off the edge.

Names are drawn as they are: no dollar sign in one begins a formula.
"""

import colorsys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from examples.mmwhs import files
from examples.mmwhs.study.compare import METRICS, Grid, labelled_text, stuck

INK, SOFT, ACCENT, PALE = "#1d2329", "#8a949e", "#c0392b", "#d7dce1"
FIRST = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#8c6bb1", "#66c2a5")
STYLES = ("solid", "dashed", "dotted", "dashdot")
DPI = 150
DOT = {"linestyle": "", "marker": "o", "markersize": 4.5}
Points = Sequence[tuple[int, float]]


def palette(count: int) -> list[str]:
    """So many different colours; the first nine can be told apart by everybody."""
    colours: list[str] = list(FIRST[:count])
    for i in range(count - len(colours)):  # the golden angle never comes back to a hue; lightness alternates
        shade = colorsys.hls_to_rgb((0.09 + 0.618034 * i) % 1, (0.38, 0.55, 0.72)[i % 3], (0.85, 0.6)[i // 3 % 2])
        colours.append("#" + "".join(f"{round(255 * part):02x}" for part in shade))
    return colours


def looks(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a style of line for every name, no two alike; yellow is too pale for a line."""
    count = max(len(FIRST), -(-len(names) // len(STYLES)) + 1)
    shades = [shade for shade in palette(count) if shade != "#f0e442"]
    return {
        name: {"color": shades[i % len(shades)], "linestyle": STYLES[i // len(shades)]} for i, name in enumerate(names)
    }


def short(level: str) -> str:
    """The name of a level of the network under an axis: ``dec.1`` for ``decoder.blocks.1``."""
    return level.replace("coder.blocks", "c").replace("encoder.", "")


def smooth(values: Sequence[float], width: int = 9) -> np.ndarray:
    """A moving mean; at both ends, the mean of what the window still covers."""
    array = np.asarray(values, dtype=float)
    half = width // 2
    return np.asarray([array[max(0, i - half) : i + half + 1].mean() for i in range(len(array))])


def legend(figure: Figure, handles: Sequence[Any]) -> None:
    """A legend below the figure, in as many columns as fit, which makes the figure higher and runs off no edge."""
    if not handles:
        return
    width, height = figure.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    if longest * 0.075 + 0.5 > width:
        width = longest * 0.075 + 0.5
    columns = max(1, min(len(handles), int(width / (0.075 * longest + 0.5))))
    rows = -(-len(handles) // columns)
    figure.set_size_inches(width, height + 0.17 * rows + 0.15)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8, frameon=False)


def save(figure: Figure, path: Path) -> None:
    """Writes a figure, its texts as they are."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # pyright: ignore[reportAttributeAccessIssue]
    files.replace(path, lambda aside: figure.savefig(aside, dpi=DPI, format="png"))


def _plain(axis: Axes, *, grid: str) -> None:
    axis.spines[["top", "right", "left" if grid == "x" else "bottom"]].set_visible(False)
    axis.tick_params(labelsize=8, length=0)
    axis.grid(axis="x" if grid == "x" else "y", color=PALE, linewidth=0.6)
    axis.set_axisbelow(True)


def draw_curves(path: Path, curves: Mapping[str, Mapping[tuple[str, str], Points]]) -> None:
    """A panel for the loss of every stage and for the validation Dice; a line for every method, dashed if it is shared.

    Args:
        path: The PNG to write.
        curves: Method -> (stage, ``"loss"`` or ``"validation_dice"``) -> pairs of step and value.
    """
    order = {"global": 0, "local": 1, "finetune": 8, "selftrain": 9}
    panels = list(dict.fromkeys(key for each in curves.values() for key, points in each.items() if points))
    panels.sort(key=lambda key: (key[1] != "loss", order.get(key[0], 5)))
    if not panels:
        return
    columns, styles = min(4, len(panels)), looks(list(curves))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (stage, what) in zip(axes, panels, strict=False):
        shared: dict[tuple[tuple[int, float], ...], list[str]] = {}
        for name, each in curves.items():
            shared.setdefault(tuple(each.get((stage, what), ())), []).append(name)
        shared.pop((), None)
        for points, names in shared.items():
            steps, values = np.transpose(points)
            values = smooth(values) if what == "loss" else values
            for i, name in enumerate(names):
                look = styles[name] | ({"linestyle": (6 * i, (6, 6 * (len(names) - 1)))} if len(names) > 1 else {})
                axis.plot(steps, values, linewidth=1.3, marker="o" if len(steps) == 1 else "", **look)
        axis.set_title(f"{stage}: {what.replace('_dice', ' Dice')}", fontsize=10, loc="left")
        axis.set_xlabel("step", fontsize=8)
        _plain(axis, grid="y")
        axis.set_ylim(*((None, None) if what == "loss" else (0, 1)))
    legend(figure, [Line2D([], [], label=name, **styles[name]) for name in curves])
    save(figure, path)


def draw_overlay(
    path: Path,
    pictures: Mapping[str, Mapping[str, np.ndarray]],
    dice: Mapping[str, Mapping[str, float | None]],
    structures: Sequence[str],
    plane: str,
) -> None:
    """A row for every volume shown: its slice, the truth, and what each method predicts.

    Args:
        path: The PNG to write.
        pictures: Method -> ``"case/what"`` -> array, as `evaluate` keeps them.
        dice: Method -> case -> mean Dice of the volume.
        structures: Names of the foreground classes.
        plane: The plane of the slices.
    """
    first, shades = next(iter(pictures.values())), palette(len(structures))
    cases = list(dict.fromkeys(key.rpartition("/")[0] for key in first))
    columns = 2 + len(pictures)
    figure = Figure(figsize=(2.35 * columns, 2.5 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), columns, squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        image, spacing = first[f"{case}/image"], first[f"{case}/spacing"]
        aspect = float(spacing[1] / spacing[0])
        overlays = [None, first[f"{case}/truth"], *(shown[f"{case}/prediction"] for shown in pictures.values())]
        for axis, overlay in zip(row, overlays, strict=True):
            _show(axis, image, overlay, aspect, plane, shades)
        row[0].set_ylabel(f"{_wrapped(case, 28)}\nslice {int(first[f'{case}/slice'])}", fontsize=8)
        for axis, method in zip(row[2:], pictures, strict=True):
            mean = dice[method].get(case)
            axis.set_xlabel(f"Dice of the volume {'–' if mean is None else f'{mean:.2f}'}", fontsize=8)
    for axis, title in zip(axes[0], ("image", "truth", *pictures), strict=True):
        axis.set_title(_wrapped(title, 20), fontsize=10)
    legend(figure, [Patch(color=shade, label=name) for name, shade in zip(structures, shades, strict=True)])
    save(figure, path)


def _show(
    axis: Axes, image: np.ndarray, overlay: np.ndarray | None, aspect: float, plane: str, shades: Sequence[str]
) -> None:
    """A slice as radiologists hang it: the patient's right on the left, front or head up."""
    turn = slice(None, None, 1 if plane == "sagittal" else -1)
    look: dict[str, Any] = {"origin": "lower", "aspect": aspect, "interpolation": "nearest"}
    axis.imshow(image[turn].T, cmap="gray", vmin=0, vmax=1, **look)
    if overlay is not None:
        masked = np.ma.masked_equal(overlay[turn].T, 0)
        axis.imshow(masked - 1, cmap=ListedColormap(list(shades)), vmin=-0.5, vmax=len(shades) - 0.5, alpha=0.6, **look)
    elif plane != "sagittal":
        edge = [patheffects.withStroke(linewidth=2, foreground="black")]  # it shows on white, too
        axis.text(0.03, 0.5, "R", transform=axis.transAxes, color="white", fontsize=8, va="center", path_effects=edge)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _rows(
    path: Path,
    grid: Grid,
    methods: Sequence[str],
    counts: Sequence[str],
    draw: Callable[[Axes, float, str, str], None],
    label: str,
    handles: Sequence[Line2D],
) -> None:
    """A panel for each number of labelled patients, a row for each method, drawn by `draw`."""
    figure = Figure(figsize=(1.9 + 2.9 * len(counts), 0.8 + 0.3 * len(methods)), layout="constrained")
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axis, count in zip(axes, counts, strict=True):
        for row, name in enumerate(methods):
            draw(axis, float(row), name, count)
        axis.set_title(labelled_text(count), fontsize=10, loc="left")
        axis.set_xlabel(_wrapped(label, 32), fontsize=9)  # a panel's width: it runs into none beside it
        axis.locator_params(axis="x", nbins=5)
        _plain(axis, grid="x")
    axes[0].set_yticks(range(len(methods)), [grid.methods[name] for name in methods])
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    legend(figure, handles)
    save(figure, path)


def draw_runs(path: Path, grid: Grid, counts: Sequence[str]) -> None:
    """Every run as a point, coloured by seed; the mean as a bar; runs that look stuck as crosses."""
    methods = [name for name in grid.methods if any(grid.results(name, count) for count in counts)]
    seeds = sorted({seed for each in grid.cells.values() for seed in each})
    colour = dict(zip(seeds, palette(len(seeds)), strict=True))

    def draw(axis: Axes, row: float, name: str, count: str) -> None:
        summary = grid.summary(name, count, "Dice")
        if summary.mean is not None:
            axis.plot([summary.mean] * 2, [row - 0.32, row + 0.32], color=INK, linewidth=1.8, zorder=3)
        for seed, result in grid.results(name, count).items():
            dice = METRICS["Dice"](result)
            if dice is not None:
                place = row + 0.36 * ((seeds.index(seed) + 0.5) / len(seeds) - 0.5)
                marker = {"marker": "x", "s": 26} if stuck(result) else {"marker": "o", "s": 18, "linewidths": 0}
                axis.scatter(dice, place, color=colour[seed], alpha=0.9, zorder=4, **marker)

    handles = [Line2D([], [], color=INK, linewidth=1.8, label="mean")]
    handles += [Line2D([], [], color=colour[seed], label=f"seed {seed}", **DOT) for seed in seeds]
    if any(stuck(result) for each in grid.cells.values() for result in each.values()):
        handles.append(Line2D([], [], color=INK, marker="x", linestyle="", markersize=5, label="stuck"))
    _rows(path, grid, methods, counts, draw, f"{grid.part} Dice", handles)


def draw_differences(path: Path, grid: Grid, counts: Sequence[str], baseline: str) -> None:
    """The paired difference of every method to a baseline, with its 95 % confidence interval and every pair."""
    compared = [n for n in grid.methods if n != baseline and any(grid.compare(n, baseline, c).values for c in counts)]
    if not compared:
        return
    pairs = np.abs([value for name in compared for c in counts for value in grid.compare(name, baseline, c).values])
    reach = 1.6 * max(float(pairs.max()), 0.01)  # intervals of two or three pairs may be far wider

    def draw(axis: Axes, row: float, name: str, count: str) -> None:
        axis.axvline(0, color=SOFT, linewidth=0.9, zorder=1)
        axis.set_xlim(-reach, reach)
        found = grid.compare(name, baseline, count)
        axis.scatter(found.values, [row] * len(found.values), s=11, color=SOFT, linewidths=0, alpha=0.8, zorder=2)
        if found.mean is None:
            return
        shade = INK
        if found.low is not None and found.high is not None:
            shade = ACCENT if found.low > 0 or found.high < 0 else INK
            axis.plot([found.low, found.high], [row, row], color=shade, linewidth=1.6, zorder=3)
        axis.plot(found.mean, row, marker="D", markersize=4.5, color=shade, zorder=4)

    look = {"marker": "D", "markersize": 4.5, "linewidth": 1.6}
    handles = [
        Line2D([], [], color=INK, label="mean and 95 % interval", **look),
        Line2D([], [], color=ACCENT, label="interval without 0", **look),
        Line2D([], [], color=SOFT, marker="o", markersize=3.5, linestyle="", label="one pair"),
    ]
    title = f"difference in {grid.part} Dice to {grid.methods[baseline]}"
    _rows(path, grid, compared, counts, draw, title, handles)


def draw_ablation(path: Path, grid: Grid, bars: Sequence[str], count: str, paper: Mapping[str, float] | None) -> None:
    """The bars of Fig. 3: mean Dice in percent and its sd, each run a point; the paper's beside ours."""
    bars = [name for name in bars if grid.results(name, count)]
    summaries = [grid.summary(name, count, "Dice") for name in bars]
    figure = Figure(figsize=(1.4 + 1.15 * len(bars), 3.1), layout="constrained")
    axis = figure.subplots()
    places, width = np.arange(len(bars)), 0.38 if paper else 0.58
    shift = -width / 2 - 0.01 if paper else 0.0
    means = [100 * (s.mean or 0.0) for s in summaries]
    spread = [100 * (s.sd or 0.0) for s in summaries]
    axis.bar(places + shift, means, width, yerr=spread, capsize=3, color="#1f6fb2", ecolor=INK, label="here")
    ends = [m + s for m, s in zip(means, spread, strict=True)]
    for place, summary, mean, s in zip(places + shift, summaries, means, spread, strict=True):
        spots = 100 * np.asarray(summary.values)
        across = np.full(len(spots), place + 0.3 * width)
        axis.scatter(across, spots, s=9, color=INK, alpha=0.55, linewidths=0, zorder=3)
        axis.text(place, mean + s + 0.4, f"{mean:.1f}", ha="center", va="bottom", fontsize=8)
        ends += list(spots)
    if paper:
        theirs = [100 * paper[name] for name in bars]
        axis.bar(places - shift, theirs, width, color=PALE, edgecolor=SOFT, linewidth=0.6, label="the paper, on MM-WHS")
        for place, value in zip(places - shift, theirs, strict=True):
            axis.text(place, value + 0.4, f"{value:.1f}", ha="center", va="bottom", fontsize=8, color=SOFT)
        ends += theirs
        legend(figure, axis.get_legend_handles_labels()[0])
    axis.set_ylim(0.0, min(104.0, max(ends) + 5))  # the length of a bar is its value
    axis.set_xticks(places, [_wrapped(grid.methods[name], 12) for name in bars])
    axis.set_ylabel(f"{grid.part} Dice (%), {labelled_text(count)}", fontsize=9)
    _plain(axis, grid="y")
    save(figure, path)


def _wrapped(title: str, width: int) -> str:
    """A title on lines of about so many letters, broken at spaces and, where there is none, anywhere."""
    lines = [""]
    for word in title.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(line[i : i + width + 4] for line in lines for i in range(0, max(1, len(line)), width + 4))


def draw_probe(path: Path, rows: Mapping[str, Mapping[str, float | None]], title: str) -> None:
    """A row for every method or stage, a column for every level: the Dice of a linear probe."""
    if not rows:
        return
    values = np.asarray([list(row.values()) for row in rows.values()], dtype=float)  # None is NaN
    names = [short(level) for level in next(iter(rows.values()))]
    figure = Figure(figsize=(2.6 + 0.55 * len(names), 0.7 + 0.27 * len(rows)), layout="constrained")
    axis = figure.subplots()
    top = 0.01 if np.isnan(values).all() else max(float(np.nanmax(values)), 0.01)
    axis.imshow(values, cmap="Blues", vmin=0, vmax=top, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text, shade = (
            ("–", INK) if np.isnan(value) else (f"{value:.2f}".lstrip("0"), "white" if value > 0.6 * top else INK)
        )
        axis.text(column, row, text, ha="center", va="center", fontsize=7.5, color=shade)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set_title(title, fontsize=9, loc="left")
    axis.spines[:].set_visible(False)
    axis.tick_params(labelsize=8, length=0)
    save(figure, path)


def draw_features(
    path: Path, pictures: Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray]]], structures: Sequence[str]
) -> None:
    """A row for every stage, a panel for some levels: points on two principal axes, coloured by structure."""
    drawn = list(next(iter(pictures.values())))
    figure = Figure(figsize=(2.5 * len(drawn), 2.3 * len(pictures)), layout="constrained")
    axes = figure.subplots(len(pictures), len(drawn), squeeze=False)
    names, shades = ["background", *structures], ["#c3c9cf", *palette(len(structures))]
    for axis, level in zip(axes[0], drawn, strict=True):
        axis.set_title(level, fontsize=9)
    for row, (stage, levels) in zip(axes, pictures.items(), strict=True):
        for axis, (points, labels) in zip(row, levels.values(), strict=True):
            for index, shade in enumerate(shades):
                axis.scatter(*points[labels == index].T, s=5, color=shade, linewidths=0, alpha=0.8)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_color(PALE)
        row[0].set_ylabel(f"after {stage}", fontsize=9)
    legend(figure, [Line2D([], [], color=s, label=name, **DOT) for name, s in zip(names, shades, strict=True)])
    save(figure, path)
