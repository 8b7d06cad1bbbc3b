"""Time in one interleaved run with a calibration around each sample; memory above the inputs; error beside float64."""

import ctypes
import gc
import math
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.case import Case, Step

SLOW = 1.25  # a sample counts where the calibration around it took at most so much more than it can
SAMPLE = 0.02  # seconds that a sample lasts at least, by repeating short steps
WARM = 576  # points of what runs before memory is measured: enough that "auto" takes the same way


class Timing(NamedTuple):
    """Seconds of a call over the samples that counted."""

    median: float
    first_quartile: float
    third_quartile: float
    samples: int
    rejected: int
    quiet: bool  #: enough samples were free of foreign load; otherwise the least disturbed ones stand in


class Clock:
    """Seconds of calls on a device, and of a fixed matrix product that tells how busy the machine is."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"
        side, dtype = (4096, torch.bfloat16) if self.cuda else (640, torch.float32)
        self.square = torch.randn(side, side, device=device, dtype=dtype)
        self.product = torch.empty_like(self.square)

    def __call__(self, run: Callable[[], object], calls: int = 1) -> float:
        """Mean seconds of a call."""
        if self.cuda:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            begin.record()
            for _ in range(calls):
                run()
            end.record()
            torch.cuda.synchronize()
            return begin.elapsed_time(end) / 1e3 / calls
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return (time.perf_counter() - start) / calls

    def mark(self) -> float:
        """Seconds of the calibration."""
        return self(lambda: torch.mm(self.square, self.square, out=self.product))


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    clock: Clock,
    *,
    seconds: float,
    least: int = 5,
    most: int = 25,
) -> dict[str, Timing]:
    """Times of all, in turn, for about so many seconds; every run has been called before, so that it is warm.

    The order is drawn anew in each round: what takes gigabytes leaves caches and allocator to whoever comes next.
    A calibration runs between any two samples. A sample is rejected where the one before or the one after it took
    more than `SLOW` times the best calibration of the run: something else had the machine. While `least` samples are
    missing, rounds go on for three times as long; then the least disturbed samples stand in, and `quiet` is false.
    """
    calls = {name: max(1, math.ceil(SAMPLE / max(clock(run), 1e-6))) for name, run in runs.items()}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}  # (worst mark around it, seconds)
    best = min(clock.mark() for _ in range(5))
    start, order, shuffle = time.monotonic(), list(runs), random.Random(0).shuffle
    while True:
        mark = clock.mark()
        shuffle(order)
        for name in order:
            taken, after = clock(runs[name], calls[name]), clock.mark()
            samples[name].append((max(mark, after), taken))
            mark, best = after, min(best, after)
        kept = min((sum(worst <= SLOW * best for worst, _ in values) for values in samples.values()), default=most)
        spent = time.monotonic() - start
        if kept >= most or (kept >= least and spent > seconds) or spent > 3 * seconds:
            break
    return {name: summary(values, SLOW * best, least) for name, values in samples.items()}


def summary(samples: list[tuple[float, float]], limit: float, least: int) -> Timing:
    """Median and quartiles of the samples whose calibration is within the limit, or of the `least` best of them."""
    kept = [taken for worst, taken in samples if worst <= limit]
    quiet = len(kept) >= min(least, len(samples))
    if not quiet:
        kept = [taken for _, taken in sorted(samples)[:least]]
    first, median, third = statistics.quantiles(kept, n=4, method="inclusive") if len(kept) > 1 else kept * 3
    return Timing(median, first, third, len(kept), len(samples) - len(kept), quiet)


def errors(got: tuple[Tensor, Tensor | None], exact: tuple[Tensor, Tensor]) -> tuple[float, float | None]:
    """Relative errors of the value and of the gradient (in the Frobenius norm)."""
    (value, grad), (true_value, true_grad) = got, exact
    apart = ((value.double() - true_value) / true_value).abs().item()
    return apart, None if grad is None else ((grad.double() - true_grad).norm() / true_grad.norm()).item()


def peak_mib(case: Case, contestant: str, step: Step) -> float | None:
    """The most memory that a step holds above its inputs, in MiB; None where it could not be found out."""
    if case.device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    return in_own_process(case, contestant)


def in_own_process(case: Case, contestant: str) -> float | None:
    """Peak resident memory in a process that does nothing else; None where it was killed or is not Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.kinds"])
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # what is freed is not held
    try:
        with (
            patch.dict(os.environ, given_back),
            ProcessPoolExecutor(1, mp_context=context) as pool,
        ):
            return pool.submit(_resident, case, contestant, torch.get_num_threads()).result()
    except BrokenProcessPool:
        return None


def _resident(case: Case, contestant: str, threads: int) -> float:
    """Peak resident memory of a step above what is held with its inputs, in MiB."""
    from benchmarks.kinds import KINDS

    torch.set_num_threads(threads)
    kind = KINDS[case.kind]
    step = kind.contestants[contestant].make(kind.problem(case))
    if "compiled" in contestant:  # the compiler is no part of it
        step()
    else:  # threads, libraries and what is imported on first use are there before the measurement
        kind.contestants[contestant].make(kind.problem(case._replace(batch=1, n=min(case.n, WARM))))()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the most it held starts anew
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before


def _status(field: str) -> float:
    """A figure of this process in MiB: VmRSS is what it holds, VmHWM the most it held."""
    return int(Path("/proc/self/status").read_text().split(f"{field}:")[1].split()[0]) / 1024
