"""The stages of a network as a picture, drawn by matplotlib, which is imported only here and only then."""

import importlib.util
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from mmgl_losses import checks
from mmgl_losses.networks.stages.table import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"encoder": "#2f6f9f", "decoder": "#c8652b", "output": "#6b6b6b"}
_LONGEST = 26  # characters of a name under a box


def draw(rows: Sequence[Row], tapped: Collection[str], ax: "Axes | None" = None) -> "Axes":
    """Boxes at (depth, stride), the stride on a log axis that goes down; `tapped` rows wear a dot.

    Args:
        rows: the stages in the order in which they run, and the modules that make the output.
        tapped: names of rows.
        ax: where to draw.
    """
    _drawable(len(rows))
    from matplotlib.lines import Line2D
    from matplotlib.patches import FancyBboxPatch, Patch
    from matplotlib.ticker import FixedLocator, NullLocator

    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(2.2 + 0.85 * len(rows), 4.6), layout="constrained")
    depths = [math.log2(math.prod(row.stride)) / len(row.stride) for row in rows]
    stages = [i for i, row in enumerate(rows) if row.role != "output"]
    ax.plot(stages, [depths[i] for i in stages], color="#c9c9c9", linewidth=6, solid_joinstyle="round", zorder=1)
    height = 0.52 * max(1.0, (max(depths) - min(depths)) / 5)
    for i, (row, depth) in enumerate(zip(rows, depths, strict=True)):
        colour, made = _COLOURS[row.role], row.role != "output"
        line = {"edgecolor": colour, "linewidth": 1.4, "linestyle": "-" if made else "--"}
        style = {"boxstyle": "round,pad=0,rounding_size=0.12", "facecolor": colour if made else "white", "zorder": 2}
        box = FancyBboxPatch((i - 0.36, depth - height / 2), 0.72, height, **line, **style)
        ax.add_patch(box)
        ink = "white" if made else colour
        ax.text(i, depth, str(row.channels), ha="center", va="center", color=ink, weight="bold", fontsize=10, zorder=3)
        if row.name in tapped:
            ax.plot(
                i + 0.3, depth - height / 2, "o", color="#f2c230", markeredgecolor="#333333", markersize=8, zorder=4
            )
        if len({*row.stride}) > 1:
            steps = "x".join(map(str, row.stride))
            ax.text(i, depth + height * 0.62, steps, ha="center", va="top", color=colour, fontsize=8)
    ax.set_xlim(-0.7, len(rows) - 0.3)
    ax.set_ylim(max(depths) + 0.75, min(depths) - 0.75)
    ax.set_xticks(range(len(rows)), [_short(row.name) for row in rows], rotation=40, ha="right", rotation_mode="anchor")
    for label, row in zip(ax.get_xticklabels(), rows, strict=True):
        label.set(color=_COLOURS[row.role], fontsize=9)
    levels = range(math.floor(min(depths)), math.ceil(max(depths)) + 1)
    ax.yaxis.set_major_locator(FixedLocator(list(levels)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_yticklabels([str(2**level) for level in levels])
    ax.set_ylabel("stride")
    ax.grid(axis="y", color="#ebebeb", linewidth=1)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    roles = [role for role in _COLOURS if any(row.role == role for row in rows)]
    handles: list[Patch | Line2D] = [
        Patch(facecolor=_COLOURS[role] if role != "output" else "white", edgecolor=_COLOURS[role], label=role)
        for role in roles
    ]
    dot = Line2D([], [], marker="o", linestyle="", color="#f2c230", markeredgecolor="#333333", markersize=8)
    dot.set_label("tapped")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": len(handles) + 1}
    ax.legend(handles=[*handles, dot], **above, frameon=False, fontsize=9)
    return ax


def _short(name: str) -> str:
    """A name that fits under a box: the end of a long one, from a dot on."""
    if len(name) <= _LONGEST:
        return name
    end = name[-_LONGEST:]
    return "…" + end.partition(".")[2] if "." in end else f"…{end}"


def _drawable(rows: int) -> None:
    """There is something to draw, and something to draw with."""
    if not rows:
        raise ValueError(checks.message("at least one stage to draw", "none"))
    if importlib.util.find_spec("matplotlib") is None:
        cure = 'Install it with `pip install matplotlib`, or with the extra `pip install "mmgl-losses[plot]"`.'
        raise ModuleNotFoundError(
            checks.message("matplotlib, to draw stages", "no such package", cure), name="matplotlib"
        )
