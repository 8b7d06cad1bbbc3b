"""The kernels against float64, on problems of random size, type and options: before any figure is believed."""

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from mmgl_losses.testing.engines import results, wanted, worst

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


def check(problem: dict[str, Any]) -> dict[str, Any]:
    """Worst error of the kernels over what is allowed, with the usual and the deterministic forward."""
    z, ids, dtype = problem["z"], problem["ids"], problem["dtype"]
    options = problem["options"] | {"bound": problem["bound"]}
    plain, exact = wanted(z, ids, options, dtype)
    found = 0.0
    for by_rows in (False, True):
        with poisoned(by_rows):
            got = results(z, ids, options, torch.float32, "fused", precision=dtype)
        found = max(found, worst(got, plain, exact, dtype))
    return {"passed": found <= 1.0, "error": found}
