"""The two figures of a report: how the stages learned, and what the networks see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from examples.mmwhs import files

STRUCTURES = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#8c6bb1", "#66c2a5")
METHODS = ("#7f7f7f", "#c0392b", "#1f6fb2", "#2e8b57", "#b7791f")
DPI = 150


def colours(structures: Sequence[str]) -> dict[str, str]:
    """One colour for every structure, the same in every figure and table."""
    return {name: STRUCTURES[i % len(STRUCTURES)] for i, name in enumerate(structures)}


def short(level: str) -> str:
    """The name of a level of the network under an axis: ``dec.1`` for ``decoder.blocks.1``."""
    return level.replace("coder.blocks", "c").replace("encoder.", "")


def smooth(values: Sequence[float], width: int = 9) -> np.ndarray:
    """A moving mean; at both ends, the mean of what the window still covers."""
    array = np.asarray(values, dtype=float)
    half = width // 2
    return np.asarray([array[max(0, i - half) : i + half + 1].mean() for i in range(len(array))])


def draw_curves(path: Path, runs: Mapping[str, Mapping[str, Mapping[str, list[tuple[int, float]]]]]) -> None:
    """A panel for the loss of every stage and one for the validation Dice; a line for every method.

    Args:
        path: The PNG to write.
        runs: Method -> stage -> name of what was logged -> pairs of step and value.
    """
    stages = list(dict.fromkeys(stage for run in runs.values() for stage in run))
    stages.sort(key=lambda stage: max(list(run).index(stage) for run in runs.values() if stage in run))
    panels = [(stage, "loss") for stage in stages]
    validated = [s for s in stages if any("validation_dice" in run.get(s, {}) for run in runs.values())]
    panels += [(stage, "validation_dice") for stage in validated]
    figure = Figure(figsize=(3.3 * len(panels), 2.9), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (stage, name) in zip(axes, panels, strict=True):
        for (method, run), colour in zip(runs.items(), METHODS, strict=False):
            points = run.get(stage, {}).get(name, [])
            if not points:
                continue
            steps, values = zip(*points, strict=True)
            if name == "loss":
                axis.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
                axis.plot(steps, smooth(values), color=colour, linewidth=1.6, label=method)
            else:
                axis.plot(steps, values, color=colour, linewidth=1.6, marker="o", markersize=3.5, label=method)
        axis.set_title(f"{stage}: {'loss' if name == 'loss' else 'validation Dice'}", fontsize=10, loc="left")
        axis.set_xlabel("step", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        if name != "loss":
            axis.set_ylim(0, 1)
    if len(runs) > 1:
        axes[panels.index((stages[-1], "loss"))].legend(fontsize=8, frameon=False, loc="upper right")
    files.replace(path, lambda aside: figure.savefig(aside, dpi=DPI, format="png"))


def draw_overlay(
    path: Path,
    pictures: Mapping[str, Mapping[str, np.ndarray]],
    metrics: Mapping[str, Mapping[str, Any]],
    structures: Sequence[str],
    plane: str,
) -> None:
    """A row for every volume shown: its slice, the truth, and what each method predicts.

    Args:
        path: The PNG to write.
        pictures: Method -> ``"case/what"`` -> array, as `evaluate` keeps them.
        metrics: Method -> its metrics.
        structures: Names of the foreground classes.
        plane: The plane of the slices.
    """
    first = next(iter(pictures.values()))
    cases = list(dict.fromkeys(key.rpartition("/")[0] for key in first))
    columns = 2 + len(pictures)
    figure = Figure(figsize=(2.35 * columns, 2.5 * len(cases) + 0.55), layout="constrained")
    axes = figure.subplots(len(cases), columns, squeeze=False)
    for row, case in zip(axes, cases, strict=True):
        image, spacing = first[f"{case}/image"], first[f"{case}/spacing"]
        aspect = float(spacing[1] / spacing[0])
        overlays = [None, first[f"{case}/truth"], *(shown[f"{case}/prediction"] for shown in pictures.values())]
        for axis, overlay in zip(row, overlays, strict=True):
            _show(axis, image, overlay, aspect, plane)
        row[0].set_ylabel(f"{case}\nslice {int(first[f'{case}/slice'])}", fontsize=8)
        for axis, method in zip(row[2:], pictures, strict=True):
            volume = list(metrics[method]["volumes"][case].values())
            there = [value for value in volume if value is not None]
            mean = f"{np.mean(there):.2f}" if there else "–"
            axis.set_xlabel(f"Dice of the volume {mean}", fontsize=8)
    for axis, title in zip(axes[0], ("image", "truth", *pictures), strict=True):
        axis.set_title(title, fontsize=10)
    handles = [Patch(color=colour, label=name) for name, colour in colours(structures).items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(7, len(handles)), fontsize=8, frameon=False)
    files.replace(path, lambda aside: figure.savefig(aside, dpi=DPI, format="png"))


def _show(axis: Axes, image: np.ndarray, overlay: np.ndarray | None, aspect: float, plane: str) -> None:
    """A slice as radiologists hang it: the patient's right on the left, front or head up."""
    turn = slice(None, None, 1 if plane == "sagittal" else -1)
    axis.imshow(image[turn].T, cmap="gray", vmin=0, vmax=1, origin="lower", aspect=aspect, interpolation="nearest")
    if overlay is not None:
        masked = np.ma.masked_equal(overlay[turn].T, 0)
        shades = ListedColormap([STRUCTURES[i % len(STRUCTURES)] for i in range(int(overlay.max(initial=1)))])
        axis.imshow(
            masked - 1, cmap=shades, vmin=-0.5, vmax=shades.N - 0.5, alpha=0.6, origin="lower", aspect=aspect,
            interpolation="nearest",
        )  # fmt: skip
    elif plane != "sagittal":
        axis.text(0.03, 0.5, "R", transform=axis.transAxes, color="white", fontsize=8, va="center", alpha=0.8)
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)
