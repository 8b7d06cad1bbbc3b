"""``python -m benchmarks``: time, peak memory and error beside what people use, in one interleaved run.

Four commands: ``run`` (the default) measures and writes a CSV file, ``bars`` checks the project's aims in one run,
``plots CSV`` draws the figures of the documentation, and ``table CSV`` prints its tables.
"""

import argparse
import re
import sys
import time
from pathlib import Path

import torch

from benchmarks import table
from benchmarks.case import Row
from benchmarks.kinds import DIMS, KINDS, POINTS, cases
from benchmarks.race import Limits, Race

RESULTS = Path("benchmarks/results")
IMAGES = Path("docs/images")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = top.add_subparsers(dest="command")
    for name, about in (("run", "measure everything (the default)"), ("bars", "check the project's aims on a CPU")):
        command = commands.add_parser(name, help=about)
        command.add_argument("--seconds", type=float, default=8.0 if name == "run" else 20.0, help="rounds of a case")
        command.add_argument("--out", type=Path, default=None, help="the CSV file")
        if name == "run":
            command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
            command.add_argument("--memory", type=float, default=None, help="GiB that a contestant may take")
            command.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
            command.add_argument("--points", type=int, nargs="+", default=list(POINTS))
            command.add_argument("--dims", type=int, nargs="+", default=list(DIMS))
            command.add_argument("--dtypes", nargs="+", default=None, help="types of the features")
            command.add_argument("--full", action="store_true", help="all sizes, however long they take")
    plots = commands.add_parser("plots", help="draw the figures of the documentation")
    plots.add_argument("csv", type=Path)
    plots.add_argument("--out", type=Path, default=IMAGES)
    commands.add_parser("table", help="print the tables of the documentation").add_argument("csv", type=Path)
    return top


def run(options: argparse.Namespace) -> list[Row]:
    """Measure every case, and write the file after each."""
    limits = Limits(seconds=options.seconds)
    if options.memory is not None:
        limits.memory = options.memory * 2**30
    if options.full:
        limits.call, limits.exact_pairs, limits.least = float("inf"), 1e9, 3
    where = table.machine(options.device)
    out = options.out or RESULTS / f"{slug(where['device'], options.device)}.csv"
    dtypes = options.dtypes or (["bfloat16", "float32"] if options.device == "cuda" else ["float32"])
    race, rows, start = Race(options.device, limits), [], time.monotonic()
    print(", ".join(f"{key}: {value}" for key, value in where.items()))
    for kind in options.kinds:
        for case in cases(kind, options.device, points=options.points, dims=options.dims, dtypes=dtypes):
            limits.measure_memory = (
                options.full or kind != "local" or case.d == min(options.dims)
            )  # it hardly asks for d
            fresh = race.run(case)
            print("\n".join(table.lines(fresh)), flush=True)
            rows += fresh
            table.write(out, rows, where)
    print(f"written to {out} after {time.monotonic() - start:.0f} s")
    return rows


def slug(name: str, device: str) -> str:
    """The name of a device as that of a file."""
    return "cpu" if device == "cpu" else re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; 1 where a bar was missed."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or words[0].startswith("--"):
        words = ["run", *words]
    options = parser().parse_args(words)
    if options.command == "plots":
        from benchmarks import plots

        for path in plots.draw(options.csv, options.out):
            print(f"drawn to {path}")
        return 0
    if options.command == "table":
        print(table.markdown(*table.read(options.csv)))
        return 0
    if options.command == "bars":
        from benchmarks import bars

        return bars.main(options.seconds, options.out or RESULTS / "cpu-bars.csv")
    run(options)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
