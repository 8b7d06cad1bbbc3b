"""The kernels against float64, on problems of random size, type and options: before any figure is believed."""

import itertools
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mmgl_losses.contrast import pair_terms

TINY = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # of the largest value: beside twice plain's


SIZES_EACH = 3  # problems of one family: only their sizes, labels and temperatures differ, so kernels are compiled once


def problems(seed: int, device: torch.device, largest: int) -> Iterator[dict[str, Any]]:
    """Endless problems: anchors in float64, ids, options, and a description."""
    dice = random.Random(seed)
    kinds = [torch.float32, torch.float16]
    if device.type == "cuda":
        kinds = [torch.bfloat16, torch.float32, torch.bfloat16, torch.float16]
    for family in itertools.count():
        dtype = kinds[family % len(kinds)]
        d = dice.choice(
            [7, 16] if device.type != "cuda" else [33, 64, 128, 256] if dtype != torch.float32 else [33, 64]
        )
        chosen = {name for name in ("keys", "mask", "weights", "tolerance") if family and dice.random() < 0.35}
        bound = dice.choice([1.0, 1.0, None])
        for _ in range(SIZES_EACH):
            torch.manual_seed(dice.randrange(1 << 30))
            sizes = dice.choice([1, 2, 5]), dice.randint(1, largest), dice.randint(1, largest), d
            yield problem(dice, device, dtype, sizes, chosen, bound)


def problem(
    dice: random.Random,
    device: torch.device,
    dtype: torch.dtype,
    sizes: tuple[int, int, int, int],
    chosen: set[str],
    bound: float | None,
) -> dict[str, Any]:
    """One problem of (groups, n, m, d), with the options that are chosen."""
    groups, n, m, d = sizes
    classes, temperature = dice.choice([1, 2, 8, 300]), dice.choice([0.02, 0.07, 0.5])

    def unit(rows: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(groups, rows, d, device=device).double(), dim=-1)

    def ids(rows: int) -> Tensor:
        return torch.randint(classes, (groups, rows), device=device)

    options: dict[str, Any] = {"temperature": temperature}
    if "keys" in chosen:
        index = torch.randint(-1, m, (groups, n), device=device)
        options |= {"keys": unit(m), "key_ids": ids(m), "self_index": index}
    keys = m if "keys" in options else n
    if "mask" in chosen:
        options["key_mask"] = torch.rand(groups, keys, device=device) < 0.7
    if "weights" in chosen:
        options["key_log_weights"] = torch.randn(groups, keys, device=device)
    if "tolerance" in chosen:
        options["tolerance"] = 1.0
    what = f"{groups}x{n}x{d} {str(dtype)[6:]} classes={classes} tau={temperature} bound={bound}"
    what = " ".join([what, *sorted(chosen)])
    return {"z": unit(n), "ids": ids(n), "options": options, "dtype": dtype, "bound": bound, "what": what}


@contextmanager
def poisoned(by_rows: bool) -> Iterator[None]:
    """New memory is full of NaN: what a kernel leaves out shows. With the deterministic forward or the usual one."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with patch.object(torch, "are_deterministic_algorithms_enabled", lambda: by_rows):
            assert torch.empty(3).isnan().all()
            yield
    finally:
        torch.use_deterministic_algorithms(before)


def outcome(problem: dict[str, Any], dtype: torch.dtype, impl: str, **kwargs: Any) -> list[Tensor]:
    """Results and gradients in float64; `dtype` is that of all arithmetic for "reference"."""
    z = problem["z"].to(dtype, copy=True).requires_grad_()
    options, leaves = dict(problem["options"]), [z]
    if "keys" in options:
        options["keys"] = options["keys"].to(dtype, copy=True).requires_grad_()
        leaves.append(options["keys"])
    terms = pair_terms(z, problem["ids"], **options, impl=impl, bound=problem["bound"], **kwargs)
    results, total = (terms.positive_lse, terms.negative_lse, terms.positive_sum), torch.zeros((), device=z.device)
    for factor, result in zip((1.0, -0.6, 1 / z.shape[1]), results, strict=True):  # the sum is that much larger
        total = total + factor * torch.where(result.isfinite(), result, 0.0).sum()
    grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    return [x.detach().double() for x in (*results, *grads)]


def check(problem: dict[str, Any]) -> dict[str, Any]:
    """Worst error of the kernels beside that of plain torch: a row of the report."""
    dtype = problem["dtype"]
    exact = outcome(problem, torch.float64, "reference")
    rounded = dict(problem)
    if dtype != torch.float32:  # plain torch on features of that type: the least that the type costs
        scale = problem["options"]["temperature"] ** -0.5
        rounded["z"] = (problem["z"] * scale).to(dtype).double() / scale
        if "keys" in problem["options"]:
            keys = problem["options"]["keys"].to(dtype).double()
            rounded["options"] = problem["options"] | {"keys": keys}
    plain = outcome(rounded, torch.float32, "reference")
    row: dict[str, Any] = {"problem": problem["what"], "passed": True, "worst": 0.0}
    for by_rows in (False, True):
        with poisoned(by_rows):
            got = outcome(problem, torch.float32, "fused", precision=dtype)
        for a, b, c in zip(got, plain, exact, strict=True):
            both = a.isfinite() & c.isfinite()
            same_holes = torch.equal(a.isneginf(), c.isneginf()) and not a.isnan().any()
            size = c[both].abs().max().item() if both.any() else 0.0
            error = (a - c)[both].abs().max().item() if both.any() else 0.0
            allowed = 2 * ((b - c)[both].abs().max().item() if both.any() else 0.0) + TINY[dtype] * max(size, 1.0)
            row["worst"] = max(row["worst"], error / allowed)
            row["passed"] = row["passed"] and same_holes and error <= allowed
    return row


def run(device: torch.device, *, seconds: float, most: int, largest: int) -> Iterator[dict[str, Any]]:
    """Rows until time or number is up; a problem that raises is a failure with its reason."""
    end = time.monotonic() + seconds
    for _, problem in zip(range(most), problems(0, device, largest), strict=False):
        if time.monotonic() > end:
            return
        try:
            yield check(problem)
        except Exception as error:  # a failure of any kind belongs in the report
            yield {"problem": problem["what"], "passed": False, "worst": None, "reason": f"{error!r}"[:300]}
