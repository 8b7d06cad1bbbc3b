"""``python -m benchmarks``: time and peak memory of the local loss, dense beside tiled, as a table and as CSV."""

import argparse
import csv
import platform
from pathlib import Path

import torch

from benchmarks.measure import in_own_process, interleaved
from benchmarks.workload import step

DENSE_BYTES = 24  # a pair, about what the dense one takes (22 at 6,400 points)


def main() -> None:
    """Measure every size and implementation."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--points", type=int, nargs="+", default=[1600, 6400, 25600], help="points of an image")
    parser.add_argument("--dims", type=int, default=64, help="length of an embedding")
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each; the median counts")
    parser.add_argument("--memory", type=float, default=20.0, help="GiB that the dense one may take")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/local_loss.csv"))
    options = parser.parse_args()

    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"local loss (supcon), forward + backward, d = {options.dims}, batch {options.batch}, float32; {machine}")
    print(f"{'points':>8} {'implementation':<14} {'seconds':>10} {'peak MiB':>10}")
    rows = []
    for points in options.points:
        names = ["tiled"]
        if options.batch * points**2 * DENSE_BYTES < options.memory * 2**30:
            names.append("reference")
        alone = {name: in_own_process(name, points, dims=options.dims, batch=options.batch) for name in names}
        long = any(result is not None and result["seconds"] > 10 for result in alone.values())
        seconds = {name: result["seconds"] for name, result in alone.items() if result}
        if not long:
            runs = {name: step(name, points, dims=options.dims, batch=options.batch) for name in seconds}
            seconds = interleaved(runs, options.repeats)
        for name, result in alone.items():
            row = {
                "points": points,
                "dims": options.dims,
                "batch": options.batch,
                "implementation": name,
                "seconds": round(seconds[name], 5) if result else None,
                "peak_mib": round(result["peak_mib"], 1) if result else None,
                "repeats": 1 if long else options.repeats,
                "machine": machine,
            }
            rows.append(row)
            print(f"{points:>8} {name:<14} {row['seconds'] or 'failed':>10} {row['peak_mib'] if result else '':>10}")
        if len(names) == 1:
            print(f"{points:>8} {'reference':<14} {'not run: above --memory':>21}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {options.out}")


if __name__ == "__main__":
    main()
