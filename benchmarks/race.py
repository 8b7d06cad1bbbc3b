"""The run: every contestant at a case, in turn; what does not fit, takes too long or fails is a row that says so."""

import gc
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.case import Case, Kind, Row, Step, reason
from benchmarks.kinds import KINDS
from benchmarks.measure import Clock, errors, interleaved, peak_mib

NOT_QUIET = "the machine was not quiet"
Seen = Callable[[Case, Row, Step], Row]


@dataclass
class Limits:
    """What a run may take."""

    seconds: float = 20.0  #: of rounds at a case
    call: float = 4.0  #: of one call of a contestant, estimated from the size before
    exact_pairs: float = 2e7  #: pairs up to which errors beside float64 are computed
    memory: float | None = None  #: bytes at the peak; four fifths of what is free where it is None
    least: int = 5  #: samples
    most: int = 25  #: samples
    deadline: float = math.inf  #: of `time.monotonic`
    measure_memory: bool = True


def free_bytes(device: str) -> float:
    """Memory that is free."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return 8.0 * 2**30


class Race:
    """Cases one after another; times of smaller ones tell which contestants a larger one is too much for."""

    def __init__(self, device: str, limits: Limits, *, interpreted: bool = False, seen: Seen | None = None) -> None:
        self.device, self.limits, self.interpreted, self.seen = device, limits, interpreted, seen
        self.clock = Clock(device)
        self.past: dict[tuple, float] = {}  # seconds for a pair of points, in the largest case so far

    def run(self, case: Case, names: Sequence[str] | None = None) -> list[Row]:
        """The rows of a case, in the order of the contestants."""
        kind = KINDS[case.kind]
        names = [name for name in kind.contestants if self._can_run(kind, name)] if names is None else names
        rows = {name: self._row(kind, case, name) for name in names}
        rows = {name: row.but(note=self.excluded(kind, case, name)) for name, row in rows.items()}
        problem = kind.problem(case)
        truth: dict[str, tuple[Tensor, Tensor] | None] = {}
        steps: dict[str, Step] = {}
        for name, row in rows.items():
            if row.note:
                continue
            try:
                step = kind.contestants[name].make(problem)
                got = step()
                if kind.exact and kind.exact_pairs(case) <= self.limits.exact_pairs and row.formula:
                    if row.formula not in truth:
                        truth[row.formula] = kind.exact(problem, row.formula)
                    exact = truth[row.formula]
                    if exact is not None:
                        value, gradient = errors(got, exact)
                        rows[name] = row.but(value_error=value, gradient_error=gradient)
                del got
                steps[name] = step
            except Exception as error:  # a contestant's failure is a result
                rows[name] = row.but(note=f"failed: {reason(error)}")
            _release()
        limits = self.limits
        times = interleaved(steps, self.clock, seconds=limits.seconds, least=limits.least, most=limits.most)
        for name, timing in times.items():
            rows[name] = rows[name].but(
                seconds=timing.median,
                first_quartile=timing.first_quartile,
                third_quartile=timing.third_quartile,
                samples=timing.samples,
                rejected=timing.rejected,
                note="" if timing.quiet else NOT_QUIET,
            )
            self.past[case.kind, name, case.d, case.dtype] = timing.median / (case.batch * case.n**2)
            if limits.measure_memory:
                rows[name] = rows[name].but(peak_mib=peak_mib(case, name, steps[name]))
            if self.seen is not None:
                rows[name] = self.seen(case, rows[name], steps[name])
            _release()
        del steps, problem
        if any("compiled" in name or name == "flex_attention" for name in times):
            torch.compiler.reset()  # it keeps what it compiled
        _release()
        return list(rows.values())

    def _can_run(self, kind: Kind, name: str) -> bool:
        contestant = kind.contestants[name]
        return not contestant.cuda or self.device == "cuda" or (contestant.ours and self.interpreted)

    def _row(self, kind: Kind, case: Case, name: str) -> Row:
        formula = kind.contestants[name].formula
        return Row(case.kind, name, formula, case.batch, case.n, case.d, case.dtype)

    def excluded(self, kind: Kind, case: Case, name: str) -> str:
        """Why a contestant is not tried, before anything runs; empty where it is."""
        contestant = kind.contestants[name]
        need = contestant.peak_bytes(case)
        have = 0.8 * free_bytes(case.device) if self.limits.memory is None else self.limits.memory
        if need > have:
            return f"does not fit: about {need / 2**30:.3g} GiB"
        took = self.past.get((case.kind, name, case.d, case.dtype))
        expected = 0.0 if took is None else took * case.batch * case.n**2
        if case.kind == "local" and expected > self.limits.call:
            return f"not tried: about {expected:.2g} s a step"
        return "not tried: no time was left" if time.monotonic() > self.limits.deadline else ""


def _release() -> None:
    """Give the device's memory back, so that the next contestant finds all of it."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
