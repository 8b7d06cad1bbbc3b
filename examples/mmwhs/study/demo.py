"""Methods side by side: the same labelled patients, the same first weights, the same fine-tuning budget."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from examples.mmwhs import files
from examples.mmwhs.data.phantom import write_phantom
from examples.mmwhs.study import report
from examples.mmwhs.train import config
from examples.mmwhs.train.fit import is_first
from examples.mmwhs.train.run import run


def demo(methods: Mapping[str, Callable[[str], config.Run]], out: Path, console: Console, *, data: str | None) -> None:
    """Runs every method in a folder of its own below `out`, prints a table, and writes one report on all.

    Args:
        methods: Name of the folder -> the configuration, given the data folder.
        out: The folder; a phantom goes to ``out/phantom``, prepared slices to ``out/cache``.
        console: Where to print.
        data: The data folder; None makes a phantom.
    """
    with files.room(out), files.alone(out) if is_first() else nullcontext():
        _demo(methods, out, console, data)


def _demo(methods: Mapping[str, Callable[[str], config.Run]], out: Path, console: Console, data: str | None) -> None:
    began = time.perf_counter()
    if data is None:
        data = str(out / "phantom")
        if is_first() and not (out / "phantom").exists():
            make = partial(write_phantom, volumes=20, seed=0)
            with console.status("Making a phantom of 20 volumes ..."):
                files.replace(out / "phantom", make)
            console.print(f"Made a phantom of 20 volumes in {out / 'phantom'}")
    results = {}
    for name, settings in methods.items():
        results[name] = run(
            settings(data), out / name, cache=out / "cache", say=console.print, progress=console.is_terminal
        )
    if not is_first():
        return
    files.write_json(out / "metrics.json", results)
    page = report.write(out, [out / name for name in methods])
    first = next(iter(results.values()))
    console.print()
    console.print(table({each["method"]: each for each in results.values()}))
    for method, names in report.missed({each["method"]: each for each in results.values()}).items():
        console.print(f"{method} never finds {', '.join(names)}: it may be stuck.")
    console.print(
        f"{first['data']}, labelled: {', '.join(first['labelled'])}; seed {first['seed']}. "
        "One draw: which patients are labelled usually matters more than the method."
    )
    console.print(f"Done in {report.seconds(time.perf_counter() - began)}. Report: {page}")


def table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    """Test results of runs beside one another, pooled over the test slices."""
    shown = Table(title="Test results", title_justify="left")
    shown.add_column("pooled over the test slices")
    for method in metrics:
        shown.add_column(method, justify="right")
    for name, values, structure in report.headline(metrics):
        label = f"  {name}" if structure else f"[bold]{name}[/]"
        best = max((v for v in values if v is not None), default=None)
        cells = [report.score(value) for value in values]
        if not structure and len(values) > 1:
            cells = [f"[bold]{c}[/]" if v == best else c for c, v in zip(cells, values, strict=True)]
        shown.add_row(label, *cells)
    times = [sum(stage["seconds"] for stage in each["stages"].values()) for each in metrics.values()]
    shown.add_row("[bold]training time[/]", *map(report.seconds, times))
    return shown
