"""``python -m benchmarks.gpu``: the kernels on this GPU: right first, then fast, beside what a user could write.

Needs this repository, torch, triton, numpy and pytest, and one GPU for some minutes. Results are written after each
step, as JSON and CSV, to the folder named by the variable OUT or to benchmarks/results. Without a GPU the same code is
run at tiny sizes in Triton's interpreter, and no figure counts.
"""

import argparse
import contextlib
import csv
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks import local, table
from benchmarks.case import Case, Row, Step, reason
from benchmarks.kinds import DIMS, POINTS, cases
from benchmarks.race import NOT_QUIET, Limits, Race

ROOT = Path(__file__).parent.parent
ALONE = ("fused", "fused, deterministic", "fused, kernels alone", "two products")
FLOAT32_UP_TO = 6400
AIM = 0.45  # of the floor, at 6,400 points and more, on a device whose products reach CLASS
SAME = ("kind", "contestant", "batch", "n", "d", "dtype")  # what makes two rows one
CLASS = 500.0  # TFLOP/s in bfloat16, measured: an H100, or better
CUTS = {
    "weigh": [(128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 3), (128, 128, 8, 2)],
    "credit": [(128, 128, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (128, 128, 4, 2)],
}


class Report:
    """All results so far, on disk after each addition."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.json, self.csv = folder / "gpu.json", folder / "gpu.csv"
        self.content: dict[str, Any] = {"checks": [], "speed": [], "graph": [], "tuning": [], "aims": []}

    def add(self, section: str, value: dict[str, Any]) -> None:
        """Append a row, or set what is no list; say so and write everything."""
        if isinstance(self.content.get(section), list):
            self.content[section].append(value)
        else:
            self.content[section] = value
        said = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in value.items() if v is not None and v != ""}
        print(f"{section}: " + ", ".join(f"{k}={v}" for k, v in said.items()), flush=True)
        self.write()

    def add_speed(self, row: dict[str, Any]) -> None:
        """Add a contestant at a case; of two times of the same, the later one counts."""
        same = [old for old in self.content["speed"] if all(old[key] == row[key] for key in SAME)]
        if row["seconds"] is None and any(old["seconds"] for old in same):
            return
        self.content["speed"] = [old for old in self.content["speed"] if old not in same]
        self.add("speed", row)

    def write(self) -> None:
        """Both files, each whole at any time."""
        aside = self.json.with_suffix(".part")
        aside.write_text(json.dumps(self.content, indent=1))
        aside.replace(self.json)
        rows = self.content["speed"]
        with self.csv.open("w", newline="") as file:
            fields = dict.fromkeys(key for row in rows for key in row)
            writer = csv.DictWriter(file, fieldnames=list(fields))
            writer.writeheader()
            writer.writerows(rows)


class Run:
    """One run: what it may take, where it reports, and how it is cut down where there is no GPU."""

    def __init__(self, report: Report, seconds: float) -> None:
        self.report, self.seconds, self.start = report, seconds, time.monotonic()
        self.cuda = torch.cuda.is_available()
        self.device = "cuda" if self.cuda else "cpu"
        self.where = table.machine(self.device)
        limits = Limits(1.5, 3.0, exact_pairs=4e8, deadline=self.until(0.8))
        if not self.cuda:
            limits = Limits(0.0, least=1, most=1, measure_memory=False, deadline=self.until(0.8))
        self.race = Race(self.device, limits, interpreted=not self.cuda, seen=self.seen)

    def until(self, share: float) -> float:
        """The moment when a share of the time is up."""
        return self.start + share * self.seconds

    def machine(self) -> None:
        """Device and versions and, on a GPU, its ceilings: before any figure is compared with a bar."""
        import triton

        from benchmarks.gpu_measure import ceilings

        versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
        name = torch.cuda.get_device_name() if self.cuda else "none: interpreted on the CPU"
        self.report.add("machine", versions | {"device": name})
        if self.cuda:
            self.report.add("ceilings", ceilings(self.race.clock))

    def checks(self) -> None:
        """Random problems against float64, then the tests of whole calls."""
        from benchmarks import gpu_checks

        most, largest = (60, 700) if self.cuda else (4, 40)
        for row in gpu_checks.run(torch.device(self.device), seconds=0.15 * self.seconds, most=most, largest=largest):
            self.report.add("checks", row)
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"]
        try:
            done = subprocess.run(
                [*command, "benchmarks/gpu_tests.py"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=max(0.25 * self.seconds, 30.0),
            )
            passed, said = done.returncode == 0, (done.stdout + done.stderr).strip()
        except subprocess.TimeoutExpired:
            passed, said = False, "no time was left"
        last = said.splitlines()[-1] if said else ""
        self.report.add("checks", {"problem": "gpu_tests.py", "passed": passed, "said": last})
        if not passed:
            print(said[-6000:], flush=True)

    def speed(self) -> None:
        """The kernels and the bare products at every size; then everybody, as far as the time goes."""
        if not self.cuda:
            names = [name for name in local.LOCAL.contestants if name not in ("flex_attention", "plain, compiled")]
            for row in self.race.run(Case("local", 1, 36, 16), names):
                self.report.add_speed(self.described(row))
            return
        sizes = [case for d in DIMS for case in cases("local", "cuda", points=POINTS, dims=[d], dtypes=["bfloat16"])]
        small = [n for n in POINTS if n <= FLOAT32_UP_TO]
        sizes += cases("local", "cuda", points=small, dims=DIMS, dtypes=["float32"])
        others = [
            case
            for kind in ("global", "dice", "step")
            for case in cases(kind, "cuda", points=POINTS, dims=DIMS, dtypes=["float32"])
        ]
        order = [*((case, ALONE) for case in sizes), *((case, None) for case in [*others, *sizes])]
        for case, names in order:
            for row in self.race.run(case, names):
                self.report.add_speed(self.described(row))

    def described(self, row: Row) -> dict[str, Any]:
        """A row with the floor of its kernels; without times where there is no GPU."""
        found = asdict(row) | self.where
        if not self.cuda:
            times = dict.fromkeys(("seconds", "first_quartile", "third_quartile"))
            return found | times | {"samples": 0, "rejected": 0, "note": row.note.replace(NOT_QUIET, "")}
        if row.seconds and row.contestant.startswith("fused"):
            from benchmarks.gpu_measure import floor_seconds

            case = Case(row.kind, row.batch, row.n, row.d, "cuda", row.dtype)
            by_rows = "deterministic" in row.contestant
            floor = floor_seconds(self.report.content["ceilings"], case, symmetric=not by_rows)
            found |= {"floor_seconds": floor, "share_of_floor": floor / row.seconds}
        return found

    def seen(self, case: Case, row: Row, step: Step) -> Row:
        """Where the host's share of the time is large, the same step as a graph."""
        if self.cuda and case.n == 1600 and row.contestant in ("fused", "fused, kernels alone", "plain"):
            from benchmarks.gpu_measure import graph_seconds

            kept = {key: getattr(row, key) for key in ("contestant", "batch", "n", "d", "dtype")}
            try:
                seconds = graph_seconds(self.race.clock, step)
                self.report.add("graph", kept | {"seconds": seconds, "eager_seconds": row.seconds})
            except Exception as error:  # a contestant that cannot be captured is a result
                self.report.add("graph", kept | {"failed": reason(error)})
                with contextlib.suppress(Exception):
                    torch.cuda.synchronize()
        return row

    def tune(self) -> None:
        """The kernels alone with other tiles of one of them, the others as they come."""
        from mmgl_losses.contrast.fused import launch

        usual = launch.tile
        cuts = CUTS if self.cuda else {"weigh": [(16, 32, 4, 1)], "credit": [(16, 16, 4, 1)]}
        sizes = [Case("local", 8, 6400, d, "cuda", "bfloat16") for d in DIMS]
        for case, kernel in product(sizes if self.cuda else [Case("local", 1, 36, 16)], cuts):
            for cut in cuts[kernel]:
                row: dict[str, Any] = {"kernel": kernel, "n": case.n, "d": case.d, "tile": cut}
                if time.monotonic() > self.until(0.97):
                    self.report.add("tuning", row | {"failed": "no time was left"})
                    continue

                def tile(name: str, *rest: Any, kernel: str = kernel, cut: tuple[int, ...] = cut) -> Any:
                    return launch.Tile(*cut) if name == kernel else usual(name, *rest)

                try:
                    with patch.object(launch, "tile", tile):
                        step = local.kernels(local.Problem(case))
                        step()
                        if self.cuda:
                            row["seconds"] = min(self.race.clock(step, 5) for _ in range(3))
                    self.report.add("tuning", row)
                except Exception as error:  # a tile that does not fit is a result
                    self.report.add("tuning", row | {"failed": reason(error)})

    def aims(self) -> None:
        """How the kernels stand beside their floor and beside the others; only what was measured on a GPU."""
        if not self.cuda:
            return
        able = self.report.content["ceilings"]["bf16_tflop_s"] >= CLASS
        timed = [row for row in self.report.content["speed"] if row["seconds"] and row["kind"] == "local"]
        rows = {(row["n"], row["d"], row["dtype"], row["contestant"]): row for row in timed}
        for (n, d, dtype, name), row in rows.items():
            what = {"n": n, "d": d, "dtype": dtype}
            if name == "fused" and n >= 6400 and dtype == "bfloat16":
                bar = (
                    {"at_least": AIM, "met": row["share_of_floor"] >= AIM} if able else {"at_least": "none: slower GPU"}
                )
                self.report.add("aims", what | {"aim": "share of the floor", "measured": row["share_of_floor"]} | bar)
            fused = rows.get((n, d, dtype, "fused"), {}).get("seconds")
            if name in ("plain", "plain, compiled", "flex_attention") and fused:
                times = row["seconds"] / fused
                aim = {"aim": f"times faster than {name}", "measured": times, "at_least": 1.0, "met": times >= 1}
                self.report.add("aims", what | aim)


def main(arguments: list[str] | None = None) -> int:
    """Check, race, tune; 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=480.0, help="time for all of it")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    options = parser.parse_args(arguments)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic runs ask for it
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    from mmgl_losses.contrast.fused import launch

    report = Report(options.out)
    run = Run(report, options.seconds)
    tile, programs = launch.tile, launch.PROGRAMS
    if not run.cuda:
        tile, programs = (lambda kernel, *_: launch.Tile(32, 32, 4, 1)), 4
    with patch.multiple(launch, tile=tile, PROGRAMS=programs):
        run.machine()
        run.checks()
        run.speed()
        run.tune()
        run.aims()
    failed = [row for row in report.content["checks"] if not row["passed"]]
    took = time.monotonic() - run.start
    summary: dict[str, Any] = {"checks": len(report.content["checks"]), "failed": len(failed), "seconds": took}
    summary["figures"] = "measured on CUDA" if run.cuda else "no CUDA figure was measured: there is no GPU here"
    report.add("summary", summary)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
