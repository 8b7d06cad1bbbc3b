"""The report of one run, or of several side by side: two figures and a page that needs nothing beside it."""

import base64
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from examples.mmwhs import files
from examples.mmwhs.data.splits import Split
from examples.mmwhs.study.figures import colours, draw_curves, draw_overlay
from examples.mmwhs.train.fit import curves

TEMPLATES = Path(__file__).parent / "templates"


def write(out: Path, runs: Sequence[Path]) -> Path:
    """Writes ``curves.png``, ``overlay.png`` and ``report.html`` about finished runs into a folder.

    Args:
        out: The folder.
        runs: Folders of runs on one data set.

    Returns:
        The page.
    """
    metrics = {each["method"]: each for each in (files.read_json(run / "metrics.json") for run in runs)}
    first = next(iter(metrics.values()))
    stages = [
        {stage: curves(run / f"{i}-{stage}") for i, stage in enumerate(each["stages"], start=1)}
        for run, each in zip(runs, metrics.values(), strict=True)
    ]
    draw_curves(out / "curves.png", dict(zip(metrics, stages, strict=True)))
    pictures = {}
    for method, run in zip(metrics, runs, strict=True):
        with np.load(run / "overlay.npz", allow_pickle=False) as stored:
            pictures[method] = dict(stored)
    draw_overlay(out / "overlay.png", pictures, metrics, first["structures"], first["main_plane"])
    page = (
        environment()
        .get_template("report.html.jinja")
        .render(
            runs=metrics,
            first=first,
            headline=headline(metrics),
            missed=missed(metrics),
            colours=colours(first["structures"]),
            split=Split.load(runs[0] / "split.json"),
            figures={name: embedded(out / f"{name}.png") for name in ("curves", "overlay")},
            settings={
                method: (run / "config.yaml").read_text(encoding="utf-8")
                for method, run in zip(metrics, runs, strict=True)
            },
            data=yaml.safe_load((runs[0] / "config.yaml").read_text(encoding="utf-8"))["data"],
            versions={name: version(name) for name in ("mmgl-losses", "torch", "lightning", "kornia")},
        )
    )
    files.write_text(out / "report.html", page)
    return out / "report.html"


def environment() -> jinja2.Environment:
    """Where pages come from."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"score": score, "seconds": seconds, "average": average, "p": p_value}
    return found


def p_value(value: float | None) -> str:
    """A probability as papers write it."""
    return "–" if value is None else "< .001" if value < 0.001 else f"{value:.3f}".lstrip("0")


def headline(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[float | None], bool]]:
    """Rows of the main table: what, a number for every run, and whether it is one structure among others."""
    runs = list(metrics.values())
    pooled = [run["pooled"] for run in runs]
    rows: list[tuple[str, list[float | None], bool]] = [
        ("Dice", [each["dice"]["mean"] for each in pooled], False),
        *((name, [each["dice"][name] for each in pooled], True) for name in runs[0]["structures"]),
        ("mIoU", [each["iou"]["mean"] for each in pooled], False),
        ("PixAcc", [each["accuracy"] for each in pooled], False),
    ]
    return rows


def missed(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Structures that a run never finds, by run: such a run may be stuck, and then says little about its method."""
    found = {
        method: [name for name in run["structures"] if run["pooled"]["dice"][name] == 0]
        for method, run in metrics.items()
    }
    return {method: names for method, names in found.items() if names}


def score(value: float | None) -> str:
    """Three decimals, or a dash for what has no score."""
    return "–" if value is None else f"{value:.3f}"


def average(values: Sequence[float]) -> float | None:
    """The mean of what there is."""
    return float(np.mean(values)) if values else None


def seconds(value: float) -> str:
    """``95`` seconds as ``1 min 35 s``."""
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def embedded(path: Path) -> str:
    """A PNG as an address that holds the picture itself."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
