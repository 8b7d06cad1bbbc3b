"""The ceilings of the GPU at hand, the floor of the kernels beneath them, and a step replayed as a graph."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.case import Case
from benchmarks.measure import Clock

CALLS = 20


def graph_seconds(clock: Clock, run: Callable[[], object]) -> float:
    """The time of a call that is replayed as a CUDA graph: no work for the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    graph.replay()
    return min(clock(graph.replay, CALLS) for _ in range(3))


def ceilings(clock: Clock) -> dict[str, Any]:
    """What this device reaches on its own: a copy, and products in three types, exponentials."""
    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    source, target = torch.empty((2, 2**28), dtype=torch.float32, device=device)
    found: dict[str, Any] = {"device": properties.name, "multiprocessors": properties.multi_processor_count}
    found["copy_tb_s"] = 2 * source.nbytes / best(clock, lambda: target.copy_(source)) / 1e12
    size = 8192
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, allow in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = allow
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        found[f"{name}_tflop_s"] = 2 * size**3 / best(clock, lambda a=a, b=b: a @ b) / 1e12
    torch.backends.cuda.matmul.allow_tf32 = before
    found["exp_t_s"] = exponentials(clock, properties.multi_processor_count)
    return found


def exponentials(clock: Clock, multiprocessors: int) -> float:
    """Exponentials in units of 10^12 a second."""
    from benchmarks.gpu_exponentials import chain

    programs, block, steps = 16 * multiprocessors, 1024, 4096
    out = torch.empty(programs * block, device="cuda")
    seconds = best(clock, lambda: chain[(programs,)](out, steps, BLOCK=block, num_warps=4))
    return out.numel() * steps / seconds / 1e12


def host_seconds(run: Callable[[], object]) -> float:
    """The time in which the host hands over a call, whatever the device takes."""
    times = []
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return min(times)


def best(clock: Clock, run: Callable[[], object], calls: int = CALLS) -> float:
    """The least mean of a few calls, after one to warm up."""
    run()
    return min(clock(run, calls) for _ in range(5))


SHARES = {  # of all pairs: products, and exponentials
    "credit": (0.5, 0.5), "rows": (1.0, 1.0), "weigh": (2.0, 1.0), "both": (2.5, 1.5), "by rows": (3.0, 2.0),
}  # fmt: skip


def floor_seconds(found: dict[str, Any], case: Case, part: str = "both") -> float:
    """The longer of products and exponentials, overlapped; `found` are the ceilings."""
    rate = found["bf16_tflop_s"] if case.dtype != "float32" else found["tf32_tflop_s"] / 3
    pairs = case.batch * case.n**2
    products, exponentials = SHARES[part]
    return max(products * 2 * pairs * case.d / rate, exponentials * pairs / found["exp_t_s"]) / 1e12
