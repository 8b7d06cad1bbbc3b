"""``python -m benchmarks bars``: the project's aims on a CPU, each beside what is measured now, in one run.

A ratio is between medians of one interleaved run, so it holds for the machine at hand; seconds are not compared.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import local, table
from benchmarks.case import Case, Row, Step
from benchmarks.measure import errors
from benchmarks.race import Limits, Race

PEERS = ("pytorch-metric-learning", "SupContrast style")  # they have SupCon, and so has what stands beside them
LOCAL = ("auto", "native", "tiled", "auto, SupCon", "plain", "plain, compiled", *PEERS, "two products")
STEP = ("ours", "network and our heads", "network", "plain")
SMALLEST = 0.0122
CASES = (
    (Case("local", 4, 400, 64), LOCAL),
    (Case("local", 4, 1600, 64), LOCAL),
    (Case("local", 4, 6400, 64), LOCAL),
    (Case("local", 1, 25600, 64), ("auto", "native", "two products")),
    (Case("global", 1, 16, 128), None),
    (Case("global", 1, 128, 128), None),
    (Case("decoder", 8, 160, 16), STEP),
)
FASTER = {400: (9.0, 6.0, 5.0), 1600: (22.0, 7.5, 7.0), 6400: (22.0, 8.0, 12.0)}  # than plain, compiled, the best peer
OF_TWO_PRODUCTS = {400: (1.2,), 1600: (0.9, 0.7), 6400: (0.8, 0.6), 25600: (0.8,)}  # what is asked for, and a stretch
PEAK_MIB = 32.0
GRADIENT = {local.TEMPERATURE: 1.5e-6, SMALLEST: 2e-6}
NO_MAXIMUM = 1.2  # times as long at the smallest temperature as at the usual one: no further pass
ONE_THREAD = 2.2  # times as long as with two: within a tenth of half of the speed
STEP_FASTER, STEP_SHARE = 3.0, 0.12
GLOBAL_FASTER = {16: 4.3, 128: 2.5}


class Bar(NamedTuple):
    """An aim and what is."""

    what: str
    measured: float | None
    limit: float
    at_least: bool
    stretch: bool = False  #: further than asked for

    @property
    def met(self) -> bool:
        """Whether it holds; what was not measured does not."""
        if self.measured is None:
            return False
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else f"{self.measured:.3g}"
        bound = f"{'>=' if self.at_least else '<='} {self.limit:g}"
        verdict = "met" if self.met else "missed (stretch)" if self.stretch else "MISSED"
        return f"{self.what:<66} {measured:>12}   {bound:<10} {verdict}"


def ratio(rows: Sequence[Row], kind: str, n: int, above: str, below: str) -> float | None:
    """Time of one contestant over that of another."""
    a, b = (found(rows, kind, n, name) for name in (above, below))
    return a.seconds / b.seconds if a and b and a.seconds and b.seconds else None


def found(rows: Sequence[Row], kind: str, n: int, name: str) -> Row | None:
    """The row of a contestant at a size."""
    return next((row for row in rows if (row.kind, row.n, row.contestant) == (kind, n, name)), None)


def timed(rows: Sequence[Row]) -> Iterator[Bar]:
    """The aims that stand on the rows of a run."""
    for n, (plain, compiled, peer) in FASTER.items():
        yield Bar(
            f"local loss, n = {n}: times faster than plain", ratio(rows, "local", n, "plain", "auto"), plain, True
        )
        measured = ratio(rows, "local", n, "plain, compiled", "auto")
        yield Bar(f"local loss, n = {n}: times faster than plain, compiled", measured, compiled, True)
        ratios = (ratio(rows, "local", n, name, "auto, SupCon") for name in PEERS)
        measured = min((value for value in ratios if value is not None), default=None)
        yield Bar(f"local loss, n = {n}: times faster than the best peer", measured, peer, True)
    for n, limits in OF_TWO_PRODUCTS.items():
        measured = ratio(rows, "local", n, "auto", "two products")
        for limit in limits:
            what = f"local loss, n = {n}: times two bare products"
            yield Bar(what, measured, limit, False, stretch=limit != limits[0])
    row = found(rows, "local", 25600, "auto")
    yield Bar("local loss, n = 25600: MiB above the inputs", row and row.peak_mib, PEAK_MIB, False)
    for n, faster in GLOBAL_FASTER.items():
        for suffix in ("", ", as printed"):
            measured = ratio(rows, "global", n, f"plain{suffix}", f"ours{suffix}")
            yield Bar(f"global loss{suffix}, 2b = {n}: times faster than plain", measured, faster, True)
    measured = ratio(rows, "decoder", 160, "plain", "ours")
    yield Bar("decoder pre-training: times faster than plain after the head", measured, STEP_FASTER, True)
    network = ratio(rows, "decoder", 160, "network", "ours")
    yield Bar("decoder pre-training: share of heads and loss", network and 1 - network, STEP_SHARE, False)


def precise(n: int = 1600, batch: int = 4, d: int = 64, seconds: float = 5.0) -> Iterator[Bar]:
    """The aims for accuracy: noise and well separated classes, at the usual temperature and at the smallest."""
    from benchmarks.measure import Clock, interleaved

    case, steps = Case("local", batch, n, d), {}
    for temperature in (local.TEMPERATURE, SMALLEST):
        worst = 0.0
        for pull in (0.0, 3.0):
            problem = local.Problem(case, temperature=temperature, pull=pull)
            step = local.ours("auto")(problem)
            worst = max(worst, errors(step(), local.exact(problem, "mmgl"))[1] or 0.0)
            steps[temperature] = step
        yield Bar(
            f"local loss, n = {n}, temperature {temperature}: gradient error", worst, GRADIENT[temperature], False
        )
    times = interleaved({str(key): step for key, step in steps.items()}, Clock("cpu"), seconds=seconds)
    threads = torch.get_num_threads()
    if threads == 2:
        usual = steps[local.TEMPERATURE]
        pair = {str(number): with_threads(number, usual, threads) for number in (1, 2)}
        alone = interleaved(pair, Clock("cpu"), seconds=seconds)
        measured = alone["1"].median / alone["2"].median
        yield Bar(f"local loss, n = {n}: time with one thread over two", measured, ONE_THREAD, False)
    measured = times[str(SMALLEST)].median / times[str(local.TEMPERATURE)].median
    yield Bar(f"local loss, n = {n}: time at temperature {SMALLEST} over usual", measured, NO_MAXIMUM, False)


def with_threads(number: int, step: Step, usual: int) -> Step:
    """A step that has so many threads; whoever comes after it has the usual number."""

    def run() -> tuple[Tensor, Tensor | None]:
        torch.set_num_threads(number)
        try:
            return step()
        finally:
            torch.set_num_threads(usual)

    return run


def main(seconds: float, out: Path) -> int:
    """Measure, print aims beside figures, write the rows; 1 where one that is no stretch was missed."""
    where, start = table.machine("cpu"), time.monotonic()
    print(", ".join(f"{key}: {value}" for key, value in where.items()))
    limits = Limits(seconds=seconds, call=float("inf"), exact_pairs=0.0)
    race, rows = Race("cpu", limits), []
    for case, names in CASES:
        limits.measure_memory = case.n == 25600
        fresh = race.run(case, names)
        print("\n".join(table.lines(fresh)), flush=True)
        rows += fresh
        table.write(out, rows, where)
    bars = [*timed(rows), *precise()]
    print("\n" + "\n".join(map(str, bars)))
    disturbed = sum("quiet" in row.note for row in rows)
    if disturbed:
        print(f"{disturbed} of {len(rows)} medians come from a machine that was not quiet: they prove nothing")
    missed = sum(not bar.met for bar in bars if not bar.stretch)
    print(f"{missed} missed; {time.monotonic() - start:.0f} s with {torch.get_num_threads()} threads; rows in {out}")
    return 1 if missed else 0
