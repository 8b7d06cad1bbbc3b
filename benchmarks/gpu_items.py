"""What `benchmarks.gpu` does in each of its phases: small items, each a name and a call that gives figures."""

import itertools
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from benchmarks import gpu_checks, local
from benchmarks.case import Case, reason
from benchmarks.gpu_measure import best, ceilings, graph_seconds, host_seconds
from benchmarks.kinds import DIMS, cases
from benchmarks.measure import Clock
from benchmarks.race import Limits, Race
from mmgl_losses.testing import engines as fixed

ROOT = Path(__file__).parent.parent
SIZES = 6400, 1600, 25600  # points of an image; the most telling first
RANDOM = 60  # problems
# Tiles beside the usual ones: x, y, warps, stages, and sometimes how many programs the work is cut into at least.
CUTS = {
    "credit": [(128, 128, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (128, 128, 8, 2), (128, 128, 4, 2, 1024)],
    "weigh": [(64, 64, 4, 3), (64, 128, 4, 2), (64, 32, 4, 3), (128, 64, 8, 2), (64, 64, 4, 2, 1600)],
    "rows": [(64, 64, 4, 3), (64, 128, 4, 2), (128, 64, 4, 2), (128, 128, 8, 2), (64, 64, 4, 2, 1600)],
}
ALONE = ("fused", "fused, deterministic", "fused, kernels alone", "two products")
# In races of their own: what takes long to compile costs no other figure.
OTHERS = (
    ("fused", "plain", "fused, SupCon", "SupContrast style"),
    ("fused", "flex_attention"),
    ("fused", "plain, compiled"),
)


class Item(NamedTuple):
    """One thing to do: what it gives is a row of the report."""

    name: str
    run: Callable[[], dict[str, Any]]


@dataclass
class Setting:
    """Where a phase runs: on the GPU or, cut down, in Triton's interpreter on the CPU."""

    folder: Path
    deadline: float  #: of `time.monotonic`
    cuda: bool

    @property
    def device(self) -> str:
        """As torch names it."""
        return "cuda" if self.cuda else "cpu"

    def clock(self) -> Clock:
        """The clock of the device."""
        return Clock(self.device)

    def sizes(self) -> list[Case]:
        """The cases that kernels and calls are timed at."""
        if not self.cuda:
            return [Case("local", 1, 36, 16)]
        return [Case("local", 8, n, d, "cuda", "bfloat16") for n in SIZES for d in DIMS]

    def race(self) -> Race:
        """A race within the time that is left."""
        if not self.cuda:
            limits = Limits(0.0, least=1, most=1, measure_memory=False, deadline=self.deadline)
            return Race(self.device, limits, interpreted=True)
        return Race(self.device, Limits(1.0, 2.0, exact_pairs=4e8, deadline=self.deadline))


def machine(setting: Setting) -> Iterator[Item]:
    """What this is, whether kernels came from the cache, and what the device reaches at most."""

    def versions() -> dict[str, Any]:
        import triton

        name = torch.cuda.get_device_name() if setting.cuda else "none: interpreted on the CPU"
        found = {"device": name, "torch": torch.__version__, "triton": triton.__version__}
        return found | {"python": platform.python_version(), "cache": os.environ.get("TRITON_CACHE_DIR", "")}

    def first_call() -> dict[str, Any]:
        cache = Path(os.environ.get("TRITON_CACHE_DIR", "/nowhere"))
        before = len([*cache.glob("*")])
        start = time.monotonic()
        local.kernels(local.Problem(setting.sizes()[0]))()
        if setting.cuda:
            torch.cuda.synchronize()
        return {"seconds": time.monotonic() - start, "in_cache": before, "compiled": len([*cache.glob("*")]) - before}

    yield Item("versions", versions)
    yield Item("first call", first_call)
    if setting.cuda:
        yield Item("ceilings", lambda: ceilings(setting.clock()))


def problems(setting: Setting) -> Iterator[Item]:
    """The fixed problems that ``python -m mmgl_losses check`` has as well; the first of them deterministic too."""
    found = fixed.cases("cuda")
    if not setting.cuda:  # the interpreter is slow, and multiplies bfloat16 wrongly
        found = [replace(case, size=(1, 20, 16), dtype=torch.float32, more_keys=case.more_keys and 5) for case in found]
        found = [found[0], found[-8]]

    def judge(case: fixed.Case, by_rows: bool) -> dict[str, Any]:
        with gpu_checks.poisoned(by_rows):
            error = fixed.judge(case, "fused", setting.device)
        return {"passed": error <= 1.0, "error": error}

    for case, by_rows in [*((case, False) for case in found), *((case, True) for case in found[:3])]:
        name = f"{case.name}{', deterministic' if by_rows else ''}"
        yield Item(name, lambda case=case, by_rows=by_rows: judge(case, by_rows))


def kernels(setting: Setting) -> Iterator[Item]:
    """Each kernel alone with its usual tile and with others."""
    from mmgl_losses.contrast.fused import plan

    cuts = CUTS if setting.cuda else {kernel: [(16, 16, 4, 1)] for kernel in CUTS}
    usual = plan.tile

    def measure(case: Case, kernel: str, cut: tuple[int, ...] | None) -> dict[str, Any]:
        def tile(name: str, *rest: Any) -> Any:
            return plan.Tile(*cut[:4]) if cut and name == kernel else usual(name, *rest)

        found: dict[str, Any] = {"kernel": kernel, "n": case.n, "d": case.d, "tile": cut or "usual"}
        programs = cut[4] if cut and len(cut) > 4 else plan.PROGRAMS
        with patch.multiple(plan, tile=tile, PROGRAMS=programs):
            step = local.one_kernel(local.Problem(case), kernel)
            step()
            if setting.cuda:
                found["seconds"] = best(setting.clock(), step, calls=5)
        return found

    found = [(case, kernel, cut) for case in setting.sizes() for kernel in cuts for cut in [None, *cuts[kernel]]]
    for case, kernel, cut in sorted(found, key=lambda x: x[2] is not None):  # the usual ones at every size first
        name = f"{kernel} {case.n} x {case.d} {cut or 'usual'}"
        yield Item(name, lambda c=case, k=kernel, t=cut: measure(c, k, t))


def module(setting: Setting) -> Iterator[Item]:
    """The loss as users call it: eager, as a graph, the host alone; then a profile."""

    def step_of(case: Case, formula: str) -> Callable[[], Any]:
        return local.ours("fused", formula)(local.Problem(case))

    def times(case: Case, formula: str) -> dict[str, Any]:
        step, found = step_of(case, formula), {"formula": formula, "n": case.n, "d": case.d}
        step()
        if setting.cuda:
            clock = setting.clock()
            found |= {"eager": best(clock, step, calls=5), "host": host_seconds(step)}
            try:
                found["graph"] = graph_seconds(clock, step)
            except Exception as error:  # it cannot be captured: the other figures stand
                found["graph_failed"] = reason(error)
        return found

    def profile(case: Case) -> dict[str, Any]:
        step = step_of(case, "supcon")
        step()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if setting.cuda:
            torch.cuda.synchronize()
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        with torch.profiler.profile(activities=activities) as found:
            step()
            if setting.cuda:
                torch.cuda.synchronize()
        events = found.key_averages()
        by = "self_cuda_time_total" if setting.cuda else "self_cpu_time_total"
        with (setting.folder / "profile.txt").open("a") as file:
            file.write(f"{case}\n{events.table(sort_by=by, row_limit=25)}\n")
        launches = sum(event.count for event in events if "LaunchKernel" in event.key)
        return {"n": case.n, "launches": launches}

    small_first = sorted(setting.sizes(), key=lambda case: case.n)
    for case, formula in itertools.product(small_first, ("supcon", "mmgl") if setting.cuda else ("mmgl",)):
        if case.n <= 6400:
            yield Item(f"{formula} {case.n} x {case.d}", lambda c=case, f=formula: times(c, f))
    for case in small_first[:1]:
        yield Item(f"profile {case.n}", lambda c=case: profile(c))


def tests(setting: Setting) -> Iterator[Item]:
    """What only whole calls show."""

    def run() -> dict[str, Any]:
        options = ["-v", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider"]
        command = [sys.executable, "-u", "-m", "pytest", *options]  # each test by its name, as soon as it has run
        left = max(setting.deadline - time.monotonic() - 2, 5.0)
        try:
            done = subprocess.run(
                [*command, "benchmarks/gpu_tests.py"], cwd=ROOT, capture_output=True, text=True, timeout=left
            )
            said, passed = done.stdout + done.stderr, done.returncode == 0
        except subprocess.TimeoutExpired as error:
            said, passed = (error.stdout or b"").decode(errors="replace") + f"\nstopped after {left:.0f} s", False
        (setting.folder / "tests.txt").write_text(said)
        failed = [line[:150] for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return {
            "passed": passed,
            "said": said.strip().splitlines()[-1][:150] if said.strip() else "",
            "failed_tests": failed,
        }

    yield Item("gpu_tests.py", run)


METRICS = ("Registers Per Thread", "Achieved Occupancy", "Compute (SM) Throughput", "Duration", "No Eligible")


def counters(setting: Setting) -> Iterator[Item]:
    """Nsight Compute on one launch of each kernel: occupancy, and what warps wait for."""

    def run(kernel: str) -> dict[str, Any]:
        program = shutil.which("ncu") or next(map(str, Path("/opt/nvidia").glob("nsight-compute/*/ncu")), None)
        if program is None:
            return {"skipped": "ncu is not there"}
        sections = [x for name in ("LaunchStats", "Occupancy", "SpeedOfLight", "WarpStateStats", "SchedulerStats")
                    for x in ("--section", name)]  # fmt: skip
        command = [program, "--clock-control", "none", "-k", f"regex:^{kernel}", "-c", "1", *sections]
        code = f"from benchmarks.gpu_items import once; once({kernel!r})"
        done = subprocess.run([*command, sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        with (setting.folder / "counters.txt").open("a") as file:
            file.write(done.stdout + done.stderr[-2000:])
        found = {line.split("  ")[0].strip(): line.split()[-1] for line in map(str.strip, done.stdout.splitlines())
                 if line.startswith(METRICS)}  # fmt: skip
        if not found:  # not allowed to count, as a rule
            said = [line for line in (done.stdout + done.stderr).splitlines() if "==ERROR==" in line or "Error" in line]
            return {"kernel": kernel, "skipped": (said or ["ncu said nothing"])[0][:150]}
        return {"kernel": kernel} | found

    for kernel in ("weigh", "credit") if setting.cuda else ():
        yield Item(kernel, lambda kernel=kernel: run(kernel))


def once(kernel: str) -> None:
    """One call for a profiler."""
    local.one_kernel(local.Problem(Case("local", 8, 6400, 64, "cuda", "bfloat16")), kernel)()
    torch.cuda.synchronize()


def random_problems(setting: Setting) -> Iterator[Item]:
    """Problems of random size, type and options."""
    most, largest = (RANDOM, 700) if setting.cuda else (2, 40)
    drawn = itertools.islice(gpu_checks.problems(0, torch.device(setting.device), largest), most)
    for i, problem in enumerate(drawn):
        yield Item(f"{i} {problem['what']}", lambda problem=problem: gpu_checks.check(problem))


def raced(setting: Setting, found: list[Case], *groups: tuple[str, ...]) -> Iterator[Item]:
    """Contestants at each case; those of a group at all cases before the next group."""
    race = setting.race()
    for names, case in itertools.product(groups, found):
        item = f"{case.n} x {case.d} {case.dtype}: {', '.join(names)}"
        yield Item(item, lambda case=case, names=names: {"rows": [asdict(x) for x in race.run(case, names)]})


def headline(setting: Setting) -> Iterator[Item]:
    """The kernels and the bare products at every size."""
    points = [6400, 25600, 1600, 400, 110592]
    found = cases("local", "cuda", points=points, dims=DIMS, dtypes=["bfloat16"]) if setting.cuda else setting.sizes()
    yield from raced(setting, found, ALONE if setting.cuda else ("fused", "fused, kernels alone"))


def competitors(setting: Setting) -> Iterator[Item]:
    """What a user could write instead."""
    for points in (6400, 1600) if setting.cuda else ():
        yield from raced(setting, cases("local", "cuda", points=[points], dims=DIMS, dtypes=["bfloat16"]), *OTHERS)
    if not setting.cuda:
        yield from raced(setting, setting.sizes(), ("fused", "plain"))


def float32(setting: Setting) -> Iterator[Item]:
    """The kernels in float32."""
    found = cases("local", "cuda", points=[1600, 6400], dims=DIMS, dtypes=["float32"]) if setting.cuda else []
    yield from raced(setting, found, ALONE)


PHASES: dict[str, Callable[[Setting], Iterator[Item]]] = {
    "machine": machine, "problems": problems, "kernels": kernels, "module": module, "tests": tests,
    "counters": counters, "random": random_problems, "headline": headline, "competitors": competitors,
    "float32": float32,
}  # fmt: skip
