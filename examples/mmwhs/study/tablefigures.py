"""The figures of a table: every run, paired differences, the bars of Fig. 3, learning curves, and probes."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from examples.mmwhs import files
from examples.mmwhs.study.compare import METRICS, Grid, Summary, labelled_text, stuck
from examples.mmwhs.study.figures import DPI, short, smooth

INK, SOFT, ACCENT, PALE = "#1d2329", "#8a949e", "#c0392b", "#d7dce1"
SEEDS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6bb1", "#7f7f7f", "#b7791f", "#2e8b57")
LINES = [(shade, style) for style in ("solid", "dashed", "dotted") for shade in SEEDS]  # 30 that look different


def _save(figure: Figure, path: Path) -> None:
    files.replace(path, lambda aside: figure.savefig(aside, dpi=DPI, format="png"))


def _plain(axis: Axes, *, grid: str) -> None:
    axis.spines[["top", "right", "left" if grid == "x" else "bottom"]].set_visible(False)
    axis.tick_params(labelsize=8, length=0)
    axis.grid(axis="x" if grid == "x" else "y", color=PALE, linewidth=0.6)
    axis.set_axisbelow(True)


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
    size = (1.9 + 2.9 * len(counts), 0.9 + 0.3 * len(methods))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
    for axis, count in zip(axes, counts, strict=True):
        for row, name in enumerate(methods):
            draw(axis, float(row), name, count)
        axis.set_title(labelled_text(count), fontsize=10, loc="left")
        axis.set_xlabel(label, fontsize=9)
        axis.locator_params(axis="x", nbins=5)
        _plain(axis, grid="x")
    axes[0].set_yticks(range(len(methods)), [grid.methods[name] for name in methods])
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=8, frameon=False)
    _save(figure, path)


def interval(summary: Summary) -> float | None:
    """Half the width of the 95 % confidence interval of a mean, by Student's t."""
    n, sd = len(summary.values), summary.sd
    return None if sd is None else float(stats.t.ppf(0.975, n - 1)) * sd / np.sqrt(n)


def draw_runs(path: Path, grid: Grid, counts: Sequence[str]) -> None:
    """Every run as a point, coloured by seed; the mean as a bar; runs that look stuck as crosses."""
    methods = [name for name in grid.methods if any(grid.results(name, count) for count in counts)]
    seeds = sorted({seed for each in grid.cells.values() for seed in each})
    colour = {seed: SEEDS[i % len(SEEDS)] for i, seed in enumerate(seeds)}

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
    dot = {"linestyle": "", "marker": "o", "markersize": 4.5}
    handles += [Line2D([], [], color=colour[seed], label=f"seed {seed}", **dot) for seed in seeds]
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
        sure = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
        shade = ACCENT if sure else INK
        if found.low is not None and found.high is not None:
            axis.plot([found.low, found.high], [row, row], color=shade, linewidth=1.6, zorder=3)
        axis.plot(found.mean, row, marker="D", markersize=4.5, color=shade, zorder=4)

    handles = [
        Line2D([], [], color=INK, marker="D", markersize=4.5, linewidth=1.6, label="mean and 95 % interval"),
        Line2D([], [], color=ACCENT, marker="D", markersize=4.5, linewidth=1.6, label="interval without 0"),
        Line2D([], [], color=SOFT, marker="o", markersize=3.5, linestyle="", label="one pair"),
    ]
    title = f"difference in {grid.part} Dice to {grid.methods[baseline]}"
    _rows(path, grid, compared, counts, draw, title, handles)


def draw_ablation(path: Path, grid: Grid, bars: Sequence[str], count: str, paper: Mapping[str, float] | None) -> None:
    """The bars of Fig. 3: mean test Dice in percent with its standard deviation, each run a point.

    Args:
        path: The PNG to write.
        grid: The results.
        bars: Names of methods, from the baseline to everything.
        count: How many labelled patients.
        paper: The paper's bars beside ours, by name.
    """
    bars = [name for name in bars if grid.results(name, count)]
    summaries = [grid.summary(name, count, "Dice") for name in bars]
    figure = Figure(figsize=(1.4 + 1.15 * len(bars), 3.3), layout="constrained")
    axis = figure.subplots()
    places, width = np.arange(len(bars)), 0.38 if paper else 0.58
    shift = -width / 2 - 0.01 if paper else 0.0
    means = np.asarray([100 * (s.mean or 0.0) for s in summaries])
    spread = [100 * (s.sd or 0.0) for s in summaries]
    axis.bar(places + shift, means, width, yerr=spread, capsize=3, color="#1f6fb2", ecolor=INK, label="here")
    lows = [m - s for m, s in zip(means, spread, strict=True)]
    for place, summary in zip(places + shift, summaries, strict=True):
        spots = 100 * np.asarray(summary.values)
        axis.scatter(
            np.full(len(spots), place + 0.3 * width), spots, s=9, color=INK, alpha=0.55, linewidths=0, zorder=3
        )
        lows += list(spots)
    tops = [m + s for m, s in zip(means, spread, strict=True)]
    for place, mean, top in zip(places + shift, means, tops, strict=True):
        axis.text(place, top + 0.4, f"{mean:.1f}", ha="center", va="bottom", fontsize=8)
    if paper:
        theirs = np.asarray([100 * paper[name] for name in bars])
        axis.bar(places - shift, theirs, width, color=PALE, edgecolor=SOFT, linewidth=0.6, label="the paper, on MM-WHS")
        for place, value in zip(places - shift, theirs, strict=True):
            axis.text(place, value + 0.4, f"{value:.1f}", ha="center", va="bottom", fontsize=8, color=SOFT)
        lows, tops = [*lows, *theirs], [*tops, *theirs]
        axis.legend(fontsize=8, frameon=False, loc="upper left", ncols=2, bbox_to_anchor=(0, 1.12))
    low, high = max(0.0, min(lows) - 6), min(104.0, max(tops) + 5)
    axis.set_ylim(low, high)
    axis.set_xticks(places, [_wrapped(grid.methods[name]) for name in bars])
    axis.set_ylabel(f"{grid.part} Dice (%), {labelled_text(count)}", fontsize=9)
    _plain(axis, grid="y")
    axis.tick_params(labelsize=8.5)
    _save(figure, path)


def _wrapped(title: str) -> str:
    """A title on two lines, broken near its middle."""
    spaces = [i for i, letter in enumerate(title) if letter == " "]
    if len(title) < 13 or not spaces:
        return title
    at = min(spaces, key=lambda i: abs(i - len(title) / 2))
    return f"{title[:at]}\n{title[at + 1 :]}"


def draw_learning(path: Path, grid: Grid, count: str) -> None:
    """The loss of every stage and the validation Dice, as means over the seeds; a line for every method."""
    curves: dict[tuple[str, str], dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name in grid.methods:
        results = grid.results(name, count).values()
        for stage in dict.fromkeys(stage for result in results for stage in result["stages"]):
            for what in ("loss", "validation_dice"):
                runs = [result["stages"][stage]["curves"].get(what, []) for result in results]
                shared = set.intersection(*({step for step, _ in run} for run in runs)) if runs else set()
                if steps := sorted(shared):
                    values = [[dict(map(tuple, run))[step] for step in steps] for run in runs]
                    curves.setdefault((stage, what), {})[name] = np.asarray(steps), np.mean(values, axis=0)
    if not curves:
        return
    stages = ("global", "local")
    order = {stage: i for i, stage in enumerate(stages)}
    panels = sorted(curves, key=lambda key: (key[1] != "loss", order.get(key[0], 9), key[0] == "finetune"))
    looks: dict[str, dict[str, Any]] = {}
    for name, (shade, style) in zip(grid.methods, cycle(LINES), strict=False):
        looks[name] = {"color": shade, "linestyle": style}
    columns = min(3, len(panels))
    figure = Figure(figsize=(3.4 * columns, 2.7 * -(-len(panels) // columns) + 0.6), layout="constrained")
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (stage, what) in zip(axes, panels, strict=False):
        for name, (steps, values) in curves[stage, what].items():
            axis.plot(steps, smooth(list(values)) if what == "loss" else values, linewidth=1.2, **looks[name])
        axis.set_title(f"{stage}: {'loss' if what == 'loss' else 'validation Dice'}", fontsize=10, loc="left")
        axis.set_xlabel("step", fontsize=8)
        _plain(axis, grid="y")
        if what != "loss":
            axis.set_ylim(0, 1)
    shown = [name for name in grid.methods if any(name in each for each in curves.values())]
    handles = [Line2D([], [], label=grid.methods[name], **looks[name]) for name in shown]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), fontsize=8, frameon=False)
    _save(figure, path)


def draw_probe(path: Path, grid: Grid, count: str) -> None:
    """A row for every method, a column for every level: the probe before fine-tuning, as the mean over the seeds."""
    rows: dict[str, dict[str, float | None]] = {}
    for name in grid.methods:
        probes = [result["probe"] for result in grid.results(name, count).values() if "probe" in result]
        if probes:
            found = {level: tuple(p[level] for p in probes if p[level] is not None) for level in probes[0]}
            rows[name] = {level: Summary(values).mean for level, values in found.items()}
    if not rows:
        return
    values = np.asarray([list(row.values()) for row in rows.values()], dtype=float)  # None is NaN
    names = [short(level) for level in next(iter(rows.values()))]
    figure = Figure(figsize=(2.6 + 0.55 * len(names), 0.7 + 0.27 * len(rows)), layout="constrained")
    axis = figure.subplots()
    top = float(np.nanmax(values))
    axis.imshow(values, cmap="Blues", vmin=0, vmax=max(top, 0.01), aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        shade = "white" if value > 0.6 * top else INK
        axis.text(column, row, f"{value:.2f}".lstrip("0"), ha="center", va="center", fontsize=7.5, color=shade)
    axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), [grid.methods[name] for name in rows])
    axis.set_title(f"{labelled_text(count)}: validation Dice of a linear probe", fontsize=9, loc="left")
    axis.spines[:].set_visible(False)
    axis.tick_params(labelsize=8, length=0)
    _save(figure, path)
