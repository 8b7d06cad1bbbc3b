"""``python -m benchmarks.gpu``: the kernels on this GPU: right first, then fast, beside what a user could write.

Needs this repository, torch and triton, and one GPU for some minutes. Results are written after each step, as JSON and
CSV, to the folder named by the variable OUT or to benchmarks/results. Without a GPU the same code runs at tiny sizes in
Triton's interpreter, and no figure counts.
"""

import argparse
import csv
import gc
import json
import os
import platform
import time
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

SIZES = (400, 1600, 6400, 25600, 110592)
SLOW = {
    "dense": 25600,
    "dense, compiled": 25600,
    "tiled": 25600,
    "three products": 25600,
}  # points they are tried up to
FLOAT32_UP_TO = KEPT_UP_TO = 6400
BATCH = 8


class Report:
    """All results so far, on disk after each addition."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.json, self.csv = folder / "gpu.json", folder / "gpu.csv"
        self.content: dict[str, Any] = {"checks": [], "speed": [], "graph": [], "tuning": [], "skipped": []}

    def add(self, section: str, value: Any) -> None:
        """Append a row, or set what is no list; say so and write everything."""
        if isinstance(self.content.get(section), list):
            self.content[section].append(value)
        else:
            self.content[section] = value
        print(f"{section}: " + ", ".join(f"{k}={_short(v)}" for k, v in value.items()), flush=True)
        self.write()

    def write(self) -> None:
        """Both files, each whole at any time."""
        _replace(self.json, json.dumps(self.content, indent=1))
        rows = self.content["speed"]
        if rows:
            fields = list(dict.fromkeys(key for row in rows for key in row))
            aside = self.csv.with_suffix(".part")
            with aside.open("w", newline="") as file:
                writer = csv.DictWriter(file, fieldnames=fields)
                writer.writeheader()
                writer.writerows(rows)
            aside.replace(self.csv)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _replace(path: Path, text: str) -> None:
    aside = path.with_suffix(".part")
    aside.write_text(text)
    aside.replace(path)


def reason(error: Exception) -> str:
    """One line of an error."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:200]


def release() -> None:
    """Leave nothing of the last contestant for the next."""
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def race(report: Report, sizes: list[tuple[int, int, int, torch.dtype]], deadline: float) -> None:
    """The kernels at every size, then every contestant; what fails is reported as failed, with its reason."""
    from benchmarks.gpu_contestants import CONTESTANTS

    exact: dict[tuple, tuple[torch.Tensor, torch.Tensor]] = {}
    ours = [name for name in CONTESTANTS if name.startswith("fused")]
    others = [name for name in CONTESTANTS if name not in ours]
    for size, name in [*product(sizes, ours), *product(sizes, others)]:
        batch, n, d, dtype = size
        row: dict[str, Any] = {"name": name, "batch": batch, "n": n, "d": d, "type": str(dtype)[6:]}
        late = time.monotonic() > deadline
        if late or n > SLOW.get(name, n):
            report.add("skipped", row | {"reason": "no time was left" if late else "not tried at this size"})
            continue
        try:
            run_one(report, row, size, exact)
        except Exception as error:  # a contestant's failure is a result
            report.add("speed", row | {"failed": reason(error)})
        release()


def run_one(report: Report, row: dict[str, Any], size: tuple, exact: dict[tuple, tuple]) -> None:
    """One contestant at one size: how far it is from the kernels, its time, its memory."""
    from benchmarks.gpu_contestants import CONTESTANTS, Problem
    from benchmarks.gpu_measure import floor_ms, graph_milliseconds, milliseconds, peak_mib

    cuda, name = torch.cuda.is_available(), row["name"]
    step = CONTESTANTS[name](Problem(*size, torch.device("cuda" if cuda else "cpu")))
    loss, grad = step()
    if name == "fused" and size[1] <= KEPT_UP_TO:
        exact[size] = loss.cpu(), grad.cpu()
    if size in exact and name != "three products":
        wanted, grad_wanted = exact[size]
        row["loss_apart"] = (loss.cpu() - wanted).abs().item()
        row["gradient_apart"] = ((grad.cpu() - grad_wanted).norm() / grad_wanted.norm()).item()
    del loss, grad
    if cuda:
        row |= {"ms": milliseconds(step), "peak_mib": peak_mib(step)}
        if name.startswith("fused"):
            floor = floor_ms(report.content["ceilings"], *size, symmetric="deterministic" not in name)
            row |= {"floor_ms": floor, "share_of_floor": floor / row["ms"]}
    report.add("speed", row)
    if size[1] == 1600 and name in ("fused", "fused, kernels alone", "dense"):
        graph(report, row, step, graph_milliseconds)


def graph(report: Report, row: dict[str, Any], step: Any, measure: Any) -> None:
    """The same step replayed as a CUDA graph, where the host's share is gone."""
    kept = {key: row[key] for key in ("name", "batch", "n", "d", "type")}
    try:
        report.add("graph", kept | {"ms": measure(step), "eager_ms": row.get("ms")})
    except Exception as error:  # a contestant that cannot be captured is a result
        report.add("graph", kept | {"failed": reason(error)})
        torch.cuda.synchronize()


def tune(report: Report, deadline: float, n: int) -> None:
    """The step at other tiles of one kernel, the others as they come."""
    from benchmarks.gpu_contestants import Problem, kernels_alone
    from benchmarks.gpu_measure import milliseconds
    from mmgl_losses.contrast.fused import launch

    usual = launch.tile
    cuts = {
        "weigh": [(128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (64, 32, 4, 3), (128, 128, 8, 2)],
        "credit": [(128, 128, 8, 3), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2), (128, 128, 4, 2)],
    }
    if not torch.cuda.is_available():
        cuts = {"weigh": [(16, 32, 4, 1)], "credit": [(16, 16, 4, 1)]}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    for d, kernel in product((64, 128) if torch.cuda.is_available() else (16,), cuts):
        for cut in cuts[kernel]:
            row: dict[str, Any] = {"kernel": kernel, "n": n, "d": d, "tile": cut}
            if time.monotonic() > deadline:
                report.add("skipped", row | {"reason": "no time was left"})
                continue

            def tile(name: str, *rest: Any, kernel: str = kernel, cut: tuple[int, ...] = cut) -> Any:
                return launch.Tile(*cut) if name == kernel else usual(name, *rest)

            try:
                with patch.object(launch, "tile", tile):
                    step = kernels_alone(Problem(BATCH if device.type == "cuda" else 1, n, d, dtype, device))
                    step()
                    row |= {"ms": milliseconds(step)} if device.type == "cuda" else {}
                report.add("tuning", row)
            except Exception as error:  # a tile that does not fit is a result
                report.add("tuning", row | {"failed": reason(error)})


def main(arguments: list[str] | None = None) -> int:
    """Check, race, tune; 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=480.0, help="time for all of it")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "benchmarks/results")))
    options = parser.parse_args(arguments)
    start, cuda = time.monotonic(), torch.cuda.is_available()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic runs ask for it
    if not cuda:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    import triton

    from benchmarks import gpu_checks
    from benchmarks.gpu_measure import ceilings
    from mmgl_losses.contrast.fused import launch

    report = Report(options.out)
    versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
    report.add(
        "machine", versions | {"device": torch.cuda.get_device_name() if cuda else "none: interpreted on the CPU"}
    )
    device = torch.device("cuda" if cuda else "cpu")
    if cuda:
        report.add("ceilings", ceilings())
        share, most, largest, n = 0.25, 60, 700, 6400
        sizes = [(BATCH, n, d, torch.bfloat16) for n in SIZES for d in (64, 128)]
        sizes += [(BATCH, n, d, torch.float32) for n in SIZES if n <= FLOAT32_UP_TO for d in (64, 128)]
        sizes.sort(key=lambda size: (size[3] == torch.float32, size[1]))
        tile, programs = launch.tile, launch.PROGRAMS
    else:
        share, most, largest, n = 0.5, 4, 40, 40
        sizes = [(1, 40, 16, torch.float32)]
        tile, programs = (lambda kernel, *_: launch.Tile(32, 32, 4, 1)), 4
    with patch.multiple(launch, tile=tile, PROGRAMS=programs):
        for row in gpu_checks.run(device, seconds=share * options.seconds, most=most, largest=largest):
            report.add("checks", row)
        race(report, sizes, start + 0.75 * options.seconds)
        tune(report, start + 0.95 * options.seconds, n)
    failed = [row for row in report.content["checks"] if not row["passed"]]
    summary = {"checks": len(report.content["checks"]), "failed": len(failed), "seconds": time.monotonic() - start}
    summary["figures"] = "measured on CUDA" if cuda else "no CUDA figure was measured: there is no GPU here"
    report.add("summary", summary)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
