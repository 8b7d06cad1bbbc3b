"""``python -m benchmarks.precision``: how far losses and gradients are from float64, beside plain torch.

Every input is made in float64 and rounded to the type that is tested, and the truth is computed in float64 from the
rounded numbers: what is left is the error of the computation. Plain torch is what the docstring of `local_supcon` gives
as its definition, in the type of the input throughout.
"""

import argparse
import csv
import math
import os
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmgl_losses.contrast import native
from mmgl_losses.functional import local_supcon

Run = Callable[[Tensor, Tensor, float], Tensor]
DIMS, CLASSES = 16, 3


def _ordinary(n: int) -> tuple[Tensor, Tensor]:
    return _noise(n), torch.arange(n) % CLASSES


def _noise(n: int) -> Tensor:
    return torch.randn(n, DIMS, dtype=torch.float64, generator=torch.Generator().manual_seed(n))


def _all_equal(n: int) -> tuple[Tensor, Tensor]:
    return torch.ones(n, DIMS, dtype=torch.float64), torch.arange(n) % CLASSES


def _orthogonal(n: int) -> tuple[Tensor, Tensor]:
    """As many directions as there are dimensions, each of one class."""
    kinds = torch.arange(n) % DIMS
    return torch.eye(DIMS, dtype=torch.float64)[kinds], kinds % CLASSES


def _one_outlier(n: int) -> tuple[Tensor, Tensor]:
    x, y = torch.ones(n, DIMS, dtype=torch.float64) + 0.01 * _noise(n), torch.arange(n) % CLASSES
    x[0] = -x[0]
    return x, y


def _tight_clusters(n: int) -> tuple[Tensor, Tensor]:
    y = torch.arange(n) % CLASSES
    return _noise(CLASSES)[y] + 0.01 * _noise(n), y


def _lengths(n: int, decades: float) -> tuple[Tensor, Tensor]:
    """Lengths from 10^-decades to 10^decades."""
    x, y = _ordinary(n)
    return x * 10 ** torch.linspace(-decades, decades, n, dtype=torch.float64)[:, None], y


def _denormal(n: int) -> tuple[Tensor, Tensor]:
    """Numbers below the smallest normal one of float32 (those of float16 are zero there)."""
    x, y = _ordinary(n)
    return x * 1e-39, y


def _one_point(n: int) -> tuple[Tensor, Tensor]:
    x, y = _ordinary(n)
    return x, torch.cat([y[1:].clamp(max=CLASSES - 2), torch.tensor([CLASSES])])


INPUTS: dict[str, Callable[[int], tuple[Tensor, Tensor]]] = {
    "ordinary": _ordinary,
    "all equal": _all_equal,
    "orthogonal": _orthogonal,
    "one outlier": _one_outlier,
    "tight clusters": _tight_clusters,
    "lengths 1e-4 to 1e4": partial(_lengths, decades=4),
    "lengths 1e-30 to 1e30": partial(_lengths, decades=30),
    "denormal numbers": _denormal,
    "a class of one point": _one_point,
}


def plain(x: Tensor, y: Tensor, temperature: float) -> Tensor:
    """The loss as anybody would write it, in the type of x throughout."""
    z = F.normalize(x, dim=1)
    eye = torch.eye(len(y), dtype=torch.bool)
    logits = (z @ z.T / temperature).masked_fill(eye, -torch.inf)
    positive = (y[:, None] == y) & ~eye
    losses = logits.logsumexp(1) - logits.where(positive, 0).sum(1) / positive.sum(1)
    return losses[positive.any(1)].mean()


def ours(x: Tensor, y: Tensor, temperature: float, impl: str) -> Tensor:
    """The library."""
    return local_supcon(x.T[None], y[None], temperature=temperature, impl=impl)


def contestants() -> dict[str, Run]:
    """Plain torch and the implementations: the fused one where Triton's interpreter stands in for a GPU."""
    names = ["reference", "tiled"] + (["fused"] if os.environ.get("TRITON_INTERPRET") == "1" else [])
    names += [] if isinstance(native.library(), str) else ["native"]
    return {"plain torch": plain, **{name: partial(ours, impl=name) for name in names}}


class Error(NamedTuple):
    """How far a loss and its gradient are from float64; NaN where they are not finite and should be."""

    value: float  #: relative to max(1, |value|)
    gradient: float  #: norm of the difference, by the norm of the gradient (of the forces where that is 0)
    forces: float  #: norm of the forces that pull and push the vectors, by the norm of the gradient: what cancels


def error(run: Run, name: str, n: int, temperature: float, dtype: torch.dtype) -> Error:
    """Errors of one computation.

    The gradient of each vector is multiplied by its length, so that no length hides another. Of a vector that is so
    short that its gradient is beyond the largest number of the type, that number is right.
    """
    x, y = INPUTS[name](n)
    rounded = x.to(dtype)
    lengths, largest = rounded.double().norm(dim=1, keepdim=True), torch.finfo(dtype).max
    results = []
    for function, value in ((partial(ours, impl="tiled"), rounded.double()), (run, rounded)):
        leaf = value.clone().requires_grad_()
        loss = function(leaf, y, temperature)
        gradient = torch.autograd.grad(loss, leaf)[0].double().clamp(-largest, largest)
        results.append((loss.detach().double(), gradient * lengths))
    (truth, wanted), (got, gradient) = results
    forces, norm = 1 / temperature / math.sqrt(n), wanted.norm().item()
    scale = norm if norm > 1e-9 * forces else forces
    value = (got - truth).abs().item() / max(1.0, truth.abs().item())
    return Error(value, (gradient - wanted).norm().item() / scale, forces / scale)


def main() -> None:
    """Measure every input, temperature, size and type."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    parser.add_argument("--points", type=int, nargs="*", default=[64, 512], help="every input, temperature and type")
    parser.add_argument(
        "--many", type=int, default=100_000, help="points of one ordinary input, tiled in float32; 0: none"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/precision.csv"))
    options = parser.parse_args()
    print(f"local loss (supcon), error against float64; {platform.machine()}, torch {torch.__version__}")
    rows = []

    def measure(name: str, n: int, temperature: float, dtype: torch.dtype, who: str, run: Run) -> None:
        if not INPUTS[name](n)[0].to(dtype).isfinite().all():
            return  # the input itself is beyond the type
        value, gradient, _ = error(run, name, n, temperature, dtype)
        rows.append((name, n, temperature, str(dtype).removeprefix("torch."), who, f"{value:.2g}", f"{gradient:.2g}"))

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for name in INPUTS:
            for n in options.points:
                for temperature in (0.01, 0.03, 0.07, 0.2, 1.0):
                    for who, run in contestants().items():
                        measure(name, n, temperature, dtype, who, run)
    if options.many:
        measure("ordinary", options.many, 0.07, torch.float32, "tiled", contestants()["tiled"])
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "points", "temperature", "type", "implementation", "value", "gradient"])
        writer.writerows(rows)
    _summary(rows)
    print(f"written to {options.out}")


def _summary(rows: list[tuple]) -> None:
    """The worst of each input, type and implementation over sizes and temperatures, as a table in Markdown."""
    names = list(dict.fromkeys(row[4] for row in rows))
    print(f"| input | type | {' | '.join(names)} |")
    print("|---|---|" + "---|" * len(names))
    for name, dtype in dict.fromkeys((row[0], row[3]) for row in rows):
        cells = []
        for who in names:
            own = [row for row in rows if (row[0], row[3], row[4]) == (name, dtype, who)]
            if not own:
                cells.append("–")
                continue
            worst = [max((float(row[i]) for row in own), key=lambda e: (math.isnan(e), e)) for i in (5, 6)]
            cells.append(" / ".join("not finite" if math.isnan(e) else f"{e:.0e}" for e in worst))
        print(f"| {name} | {dtype} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
