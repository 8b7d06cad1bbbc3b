"""Time in one interleaved run, memory in a process of its own."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.workload import step


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each, all run in turn, so that a slow spell of the machine meets them all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if repeat:  # the first is to warm up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def in_own_process(impl: str, points: int, *, dims: int, batch: int) -> dict[str, float] | None:
    """Peak memory above the inputs in MiB, and seconds, of one step in a fresh process; None where it failed."""
    command = [sys.executable, "-m", "benchmarks.measure", impl, str(points), str(dims), str(batch)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(result.stdout) if result.returncode == 0 else None


def _memory(field: str) -> float:
    """A figure of this process in MiB: VmRSS is what it holds, VmHWM the most it held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def _main(impl: str, points: int, dims: int, batch: int) -> None:
    step(impl, 64, dims=dims, batch=1)()  # threads and libraries are there before the measurement
    run = step(impl, points, dims=dims, batch=batch)
    Path("/proc/self/clear_refs").write_text("5")  # the most it held starts anew (Linux)
    before, start = _memory("VmRSS"), time.perf_counter()
    run()
    print(json.dumps({"peak_mib": _memory("VmHWM") - before, "seconds": time.perf_counter() - start}))


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
