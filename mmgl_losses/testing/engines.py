"""``python -m mmgl_losses check``: whether each engine is right on this machine, and how fast.

Every engine solves fixed problems in a process of its own, so that a fault there ends nothing else, and is held
against float64. Half precision may be off by twice what plain torch is off on features of that type.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmgl_losses.contrast import Impl, pair_terms, pose
from mmgl_losses.contrast.engines import ENGINES
from mmgl_losses.contrast.problem import Problem
from mmgl_losses.losses.local_supcon import local_supcon

TINY = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the largest value
LIMIT = 120.0  # seconds for an engine, the first compilation of kernels included
TIMED = {"cpu": (2, 1600), "cuda": (8, 6400)}  # images and points of the timing
POINTS = 333  # of a group; keys of their own are 200 more


@dataclass(frozen=True)
class Case:
    """A problem in words; what it holds is drawn from its seed on the CPU, the same everywhere."""

    name: str
    dtype: torch.dtype = torch.float32
    size: tuple[int, int, int] = (2, POINTS, 64)  #: groups, anchors, features
    more_keys: int | None = None  #: keys of their own, so many more than anchors
    has: frozenset[str] = field(default=frozenset())  #: of "self", "mask", "weights", "tolerance"
    bound: float | None = 1.0
    classes: int = 8
    temperature: float = 0.07
    seed: int = 0

    def problem(self, device: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Anchors in float64, ids, and options, on a device."""
        groups, n, width = self.size
        dice = torch.Generator().manual_seed(self.seed)

        def unit(rows: int) -> Tensor:
            return normalize(torch.randn(groups, rows, width, generator=dice, dtype=torch.float64), dim=-1).to(device)

        def ids(rows: int) -> Tensor:
            return torch.randint(self.classes, (groups, rows), generator=dice).to(device)

        m = n + (self.more_keys or 0)
        options: dict[str, Any] = {"temperature": self.temperature, "bound": self.bound}
        if self.more_keys is not None:
            options |= {"keys": unit(m), "key_ids": ids(m)}
        if "self" in self.has:
            options["self_index"] = torch.randint(-1, m, (groups, n), generator=dice).to(device)
        if "mask" in self.has:
            options["key_mask"] = (torch.rand(groups, m, generator=dice) < 0.7).to(device)
        if "weights" in self.has:
            options["key_log_weights"] = torch.randn(groups, m, generator=dice).to(device)
        if "tolerance" in self.has:
            options["tolerance"] = 1.0
        return unit(n), ids(n), options


def cases(device: str) -> list[Case]:
    """The fixed problems: what every option, type and awkward size asks of an engine, the usual ones first."""
    half = [torch.bfloat16, torch.float16] if device == "cuda" else [torch.float32]
    plenty = frozenset({"self", "mask", "weights"})
    found = [Case(f"plain {str(dtype)[6:]}", dtype) for dtype in half]
    found += [
        Case("plain float32"),
        Case("128 features", half[0], (2, POINTS, 128)),
        Case("no bound", half[0], bound=None),
        Case("no bound, float32", bound=None),
        Case("other keys", half[0], more_keys=200, has=frozenset({"self"})),
        Case("other keys, float32", more_keys=200),
        Case("masked keys", half[0], has=frozenset({"mask"})),
        Case("weights", half[0], has=frozenset({"weights"})),
        Case("tolerance", half[0], has=frozenset({"tolerance"})),
        Case("all options", half[-1], more_keys=200, has=plenty),
        Case("all options, no bound", half[-1], more_keys=200, has=plenty | {"tolerance"}, bound=None),
        Case("one point", half[0], (3, 1, 17)),
        Case("odd sizes", half[0], (3, 129, 33), classes=2),
        Case("one class", half[0], classes=1),
        Case("many classes", half[0], classes=10**6),
        Case("256 features", half[0], (1, 200, 256)),
        Case("small temperature", torch.float32, temperature=0.005),
    ]
    return list({case.name: case for case in found}.values())


def results(
    anchors: Tensor, ids: Tensor, given: dict[str, Any], dtype: torch.dtype, impl: str, **options: Any
) -> list[Tensor]:
    """Log-sum-exps, sums and gradients in float64; `dtype` is that of the anchors given to the engine."""
    z = anchors.to(dtype, copy=True).requires_grad_()
    given, leaves = dict(given), [z]
    if "keys" in given:
        given["keys"] = given["keys"].to(dtype, copy=True).requires_grad_()
        leaves.append(given["keys"])
    terms = pair_terms(z, ids, **given, impl=cast("Impl", impl), **options)
    found, total = (terms.positive_lse, terms.negative_lse, terms.positive_sum), torch.zeros((), device=z.device)
    for factor, result in zip((1.0, -0.6, 1 / z.shape[1]), found, strict=True):  # the sum is that much larger
        total = total + factor * torch.where(result.isfinite(), result, 0.0).sum()
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [x.detach().double() for x in (*found, *grads)]


def wanted(
    anchors: Tensor, ids: Tensor, given: dict[str, Any], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """The results of plain torch on features of a type, and the exact ones."""
    near, kept = rounded(anchors, given, dtype)
    plain = results(near, ids, kept, torch.float32, "reference")
    return plain, results(anchors, ids, given, torch.float64, "reference")


def rounded(anchors: Tensor, given: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, dict[str, Any]]:
    """Features as a type holds them: the least that the type costs."""
    if dtype in (torch.float32, torch.float64):
        return anchors, given
    scale = given["temperature"] ** -0.5
    if "keys" in given:
        given = given | {"keys": given["keys"].to(dtype).double()}
    return (anchors * scale).to(dtype).double() / scale, given


def worst(got: list[Tensor], plain: list[Tensor], exact: list[Tensor], dtype: torch.dtype) -> float:
    """The largest error over what is allowed: above 1 something is wrong; infinite where values are missing."""
    found = 0.0
    for a, b, c in zip(got, plain, exact, strict=True):
        if a.isnan().any() or not torch.equal(a.isneginf(), c.isneginf()):
            return float("inf")
        both = a.isfinite() & c.isfinite()
        if not both.any():
            continue
        size, error, usual = (x[both].abs().max().item() for x in (c, a - c, b - c))
        found = max(found, error / (2 * usual + TINY[dtype] * max(size, 1.0)))
    return found


def judge(case: Case, impl: str, device: str) -> float:
    """`worst` of an engine at a case."""
    anchors, ids, given = case.problem(device)
    found = results(anchors, ids, given, torch.float32, impl, precision=case.dtype)
    return worst(found, *wanted(anchors, ids, given, case.dtype), case.dtype)


def milliseconds(impl: str, device: str, dtype: torch.dtype) -> float:
    """The median time of the local loss and its gradient, after a few calls to warm up."""
    batch, n = TIMED[device]
    dice = torch.Generator().manual_seed(0)
    features = torch.randn(batch, 64, n, generator=dice).to(device, dtype).requires_grad_()
    labels = torch.randint(8, (batch, n), generator=dice).to(device)
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(10):
        wait()
        start = time.perf_counter()
        torch.autograd.grad(local_supcon(features, labels, impl=cast("Impl", impl)), features)
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[3:])


def rows(impl: str, device: str) -> Iterator[dict[str, Any]]:
    """What an engine makes of every case, and its time; each a row as soon as it is known."""
    for case in cases(device):
        try:
            yield {"case": case.name, "error": judge(case, impl, device)}
        except Exception as error:  # a failure of any kind is what is looked for
            first = (str(error).strip().splitlines() or [""])[0]
            yield {"case": case.name, "error": float("inf"), "failed": f"{type(error).__name__}: {first}"[:200]}
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        yield {"milliseconds": milliseconds(impl, device, dtype)}
    except Exception as error:
        yield {"untimed": type(error).__name__}


def apart(impl: str, device: str) -> tuple[list[dict[str, Any]], str | None]:
    """The rows of an engine from a process of its own, and how that ended where it did not end well."""
    command = [sys.executable, "-m", "mmgl_losses.testing.engines", impl, device]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = None
    try:
        said, errors = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        said, errors = process.communicate()
        end = f"stopped after {LIMIT:.0f} s"
    if end is None and process.returncode:
        end = f"ended with status {process.returncode}: {(errors.strip().splitlines() or [''])[-1]}"[:200]
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")], end


def report(devices: tuple[str, ...], say: Callable[[str], None]) -> bool:
    """Say a line for each engine and device as soon as it is known, what was wrong below it; true if nothing was."""
    good = True
    for device in devices:
        times: dict[str, float] = {}
        for impl, engine in ENGINES.items():
            reason = engine.refuses(problem(2, device))
            if reason is not None:
                say(f"{impl:<9} on {device}: not there. {reason}")
                continue
            found, end = apart(impl, device)
            verdict, wrong = judged(found, end, device)
            times.update((impl, row["milliseconds"]) for row in found if "milliseconds" in row)
            say("\n".join([f"{impl:<9} on {device}: {verdict}", *(f"    WRONG: {text}" for text in wrong)]))
            good = good and not wrong
        if "fused" in times and device == "cuda":
            others = {name: took / times["fused"] for name, took in times.items() if name != "fused"}
            compared = ", ".join(f"{brief(ratio)} times as fast as impl={name!r}" for name, ratio in others.items())
            say(f"impl='fused' here: {compared}")
    return good


def judged(found: list[dict[str, Any]], end: str | None, device: str) -> tuple[str, list[str]]:
    """What the rows of an engine say in a line, and each thing that is wrong."""
    wrong = []
    for row in found:
        if row.get("error", 0.0) > 1.0:
            why = row.get("failed") or f"{row['error']:.3g} times the error that is allowed"
            wrong.append(f"{row['case']}: {why}")
    right = sum("case" in row for row in found) - len(wrong)
    verdict = f"right on {right} of {len(cases(device))} problems"
    batch, n = TIMED[device]
    verdict += "".join(
        f"; {batch} x {n} points in {brief(row['milliseconds'])} ms" for row in found if "milliseconds" in row
    )
    return verdict, wrong + ([end] if end else [])


def brief(value: float) -> str:
    """A number of three digits, or all of a longer one before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def problem(n: int, device: str) -> Problem:
    """A problem of n points, for which an engine says whether it is there and whether it suits."""
    z, ids = torch.zeros(1, n, 4, device=device), torch.zeros(1, n, dtype=torch.int64, device=device)
    return pose(z, ids, temperature=1.0, bound=1.0, precision=z.dtype)


if __name__ == "__main__":
    for row in rows(*sys.argv[1:]):
        print(json.dumps(row), flush=True)
