"""What only a whole call can show of the kernels on a device; `benchmarks.gpu` runs this file with pytest.

Without a GPU the tests that make sense there run in Triton's interpreter, at tiny sizes.
"""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from mmgl_losses.contrast.fused import plan
from mmgl_losses.functional import local_supcon

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BATCH, DIMS, SIZE = (3, 64, (29, 31)) if CUDA else (2, 8, (5, 7))
FORMULAS = ("supcon", "supcon_in", "mmgl") if CUDA else ("mmgl",)


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    """A fixed seed and, in the interpreter, small tiles."""
    torch.manual_seed(0)
    if CUDA:
        yield
        return
    with patch.multiple(plan, tile=lambda *_: plan.Tile(32, 32, 4, 1), PROGRAMS=4):
        yield


def maps(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Features (B, D, *size) and labels (B, *size)."""
    labels = torch.randint(4, (BATCH, *SIZE), device=DEVICE)
    return torch.randn(BATCH, DIMS, *SIZE, device=DEVICE, dtype=dtype), labels


def outcome(features: Tensor, labels: Tensor, impl: str = "fused", **options) -> list[Tensor]:
    """The loss and the gradient, in float64."""
    leaf = features.detach().requires_grad_()
    loss = local_supcon(leaf, labels, impl=impl, **options)
    return [loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("pairs", ["image", "batch"])
def test_formulas_agree_with_float64(formula: str, pairs: str) -> None:
    features, labels = maps()
    wanted = outcome(features.double(), labels, "reference", formula=formula, pairs=pairs)
    got = outcome(features, labels, formula=formula, pairs=pairs)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-6)
    assert (got[1] - wanted[1]).norm() <= 1e-5 * wanted[1].norm()


def test_half_precision_keeps_its_type() -> None:
    features, labels = maps(torch.float16)
    wanted = outcome(features.double(), labels, "reference")
    got = outcome(features, labels)
    assert (got[1] - wanted[1]).norm() <= 5e-3 * wanted[1].norm()


def test_autocast_changes_nothing() -> None:
    features, labels = maps()
    wanted = outcome(features, labels)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        got = outcome(features, labels)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)


def test_points_that_take_no_part_may_hold_nan() -> None:
    features, labels = maps()
    out = labels == 3
    wanted = outcome(features, labels, ignore_index=3)
    got = outcome(torch.where(out[:, None], torch.nan, features), labels, ignore_index=3)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-8)


def test_any_layout() -> None:
    features, labels = maps()
    wanted = outcome(features, labels)
    strided = torch.stack([features, torch.full_like(features, torch.nan)], -1)[..., 0]
    last = features.contiguous(memory_format=torch.channels_last)
    for other in (strided, last):
        torch.testing.assert_close(outcome(other, labels), wanted, rtol=1e-6, atol=1e-8)


def test_deterministic_runs_repeat() -> None:
    features, labels = maps()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = outcome(features, labels), outcome(features, labels)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


if CUDA:  # what has no meaning in the interpreter, or takes long there

    def test_nothing_waits_for_the_device() -> None:
        features, labels = maps()
        outcome(features, labels)  # compiles the kernels
        torch.cuda.set_sync_debug_mode("error")
        try:
            outcome(features, labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_memory_is_linear() -> None:
        peaks = []
        for n in (20_000, 40_000):
            features = torch.randn(1, 64, n, device=DEVICE, dtype=torch.bfloat16)
            labels = torch.randint(4, (1, n), device=DEVICE)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            outcome(features, labels)
            peaks.append(torch.cuda.max_memory_allocated() - before)
        assert peaks[1] <= 2.5 * peaks[0]

    def test_replays_as_a_graph() -> None:
        features, labels = maps()
        wanted = outcome(features, labels)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outcome(features, labels)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = outcome(features, labels)
        graph.replay()
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)

    def test_on_another_stream() -> None:
        features, labels = maps()
        wanted = outcome(features, labels)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            got = outcome(features, labels)
        torch.cuda.current_stream().wait_stream(stream)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-7)

    def test_compiles_as_one_graph() -> None:  # last: the compiler of torch takes its time
        features, labels = maps()
        compiled = torch.compile(local_supcon, fullgraph=True)
        leaf = features.detach().requires_grad_()
        loss = compiled(leaf, labels, impl="fused")
        got = [loss.detach().double(), torch.autograd.grad(loss, leaf)[0].double()]
        torch.testing.assert_close(got, outcome(features, labels), rtol=1e-5, atol=1e-7)
