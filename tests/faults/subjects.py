"""What faults are done to: a run and a table, how each is started in a folder, and what it must leave there."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from examples.mmwhs import files
from examples.mmwhs.__main__ import main
from examples.mmwhs.study import plan, report, results, table
from examples.mmwhs.train import config, methods
from examples.mmwhs.train.fit import curves
from tests.examples.tiny import SHORT


@dataclass(frozen=True)
class Subject:
    """A command.

    Attributes:
        name: What it is.
        do: Runs it on a data set in a folder: its exit status.
        left: All it leaves there that must not depend on how often it was killed.
    """

    name: str
    do: Callable[[Path, Path], int]
    left: Callable[[Path], Any]


def do_run(data: Path, out: Path) -> int:
    """A run of all three stages, by its command."""
    scale = data.parent / "scale.yaml"
    if not scale.is_file():
        files.write_text(scale, yaml.safe_dump(asdict(SHORT)))
    options = ["--data", data, "--scale", scale, "--out", out / "run", "--labelled", 2, "--accelerator", "cpu"]
    return main(["run", "--method", "mmgl", *map(str, options)])


def left_by_run(out: Path) -> Any:
    """All numbers except times, the curves, the weights, and the names of all files."""
    folder = out / "run"
    stages = sorted(folder.glob("[1-9]-*"))
    return (
        timeless(files.read_json(folder / "metrics.json")),
        {stage.name: curves(stage) for stage in stages},
        plain({stage.name: files.load(stage / "weights.pt") for stage in stages}),
        plain(files.load(folder / "model.pt")),
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "from-step" not in str(path)),
    )


def do_table(data: Path, out: Path) -> int:
    """Two runs that share nothing but their data, task by task as the workers of a table do them; then its report."""
    files.own(out, "table")
    jobs = plan.jobs(
        methods.load_all(["random", "mmgl_226"]),
        data=str(data),
        scale=SHORT,
        labelled=[2],
        seeds=[0],
        compute=config.Compute(accelerator="cpu"),
        cache=out / "cache",
    )
    folders = plan.Folders(out, out / "results")
    try:
        for task, _ in plan.tasks(jobs, folders).values():
            _, _, error = table.work(task, folders, os.getpid())
            if error:
                print(f"error: {table.reason(error)}")
                return 2
        report.write_table(out, results.read(folders.results), out / "pictures")
    except ValueError as error:
        print(f"error: {error}")
        return 2
    return 0


def left_by_table(out: Path) -> Any:
    """The results, the weights of all stages, the report's numbers, and the names of all files."""
    found = sorted(map(timeless, results.read(out / "results")), key=lambda result: result["name"])
    stages = {path.name: plain(files.load(path / "weights.pt")) for path in sorted((out / "stages").iterdir())}
    kept = [path for path in out.rglob("*") if "from-step" not in str(path)]
    names = sorted(
        str(path.relative_to(out)) for path in kept if not (path.parent.name == "cache" and ".part-" in path.name)
    )
    return found, stages, (out / "table.md").read_text(), names


def timeless(value: Any) -> Any:
    """Plain values without what a clock says."""
    if isinstance(value, dict):
        return {key: timeless(each) for key, each in value.items() if key != "seconds"}
    return value


def plain(value: Any) -> Any:
    """Tensors as bytes, so that two of them are equal if all bits are."""
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return value.contiguous().numpy().tobytes() if isinstance(value, torch.Tensor) else value


SUBJECTS = (Subject("run", do_run, left_by_run), Subject("table", do_table, left_by_table))
