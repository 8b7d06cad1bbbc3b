"""Times on a GPU: medians between events, peak memory, graphs, and the ceilings of the device at hand."""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch


def milliseconds(run: Callable[[], object], *, seconds: float = 0.4, most: int = 50) -> float:
    """The median time of a call, after warming up, in about so many seconds."""
    run()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    repeats = max(3, min(most, math.ceil(seconds / max(time.perf_counter() - start, 1e-5))))
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def peak_mib(run: Callable[[], object]) -> float:
    """The most memory that a call holds above what was there, in MiB."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def graph_milliseconds(run: Callable[[], object]) -> float:
    """The median time of a call that is replayed as a CUDA graph: no work for the host."""
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
    return milliseconds(graph.replay)


def ceilings() -> dict[str, Any]:
    """What this device reaches on its own: a copy, and products in three types; exponentials from its clock."""
    device = torch.device("cuda")
    properties = torch.cuda.get_device_properties(device)
    source, target = torch.empty((2, 2**28), dtype=torch.float32, device=device)

    def copy() -> None:
        target.copy_(source)

    found: dict[str, Any] = {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "copy_tb_s": 2 * source.nbytes / milliseconds(copy) / 1e9,
    }
    size = 8192
    before = torch.backends.cuda.matmul.allow_tf32
    for name, dtype, allow in (
        ("bf16", torch.bfloat16, False),
        ("tf32", torch.float32, True),
        ("float32", torch.float32, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = allow
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        found[f"{name}_tflop_s"] = 2 * size**3 / milliseconds(lambda a=a, b=b: a @ b) / 1e9
    torch.backends.cuda.matmul.allow_tf32 = before
    clock = getattr(properties, "clock_rate", 1_755_000) * 1e3  # Hz
    found["exp_t_s"] = properties.multi_processor_count * 16 * clock / 1e12  # 16 a clock on each multiprocessor
    return found


def floor_ms(found: dict[str, Any], batch: int, n: int, d: int, dtype: torch.dtype, *, symmetric: bool = True) -> float:
    """The longer of 2.5 products of all pairs and 1.5 exponentials of each (3 and 2 without symmetry), overlapped."""
    rate = found["bf16_tflop_s"] if dtype != torch.float32 else found["tf32_tflop_s"] / 3
    pairs = batch * n**2
    products, exponentials = (2.5, 1.5) if symmetric else (3.0, 2.0)
    return max(products * 2 * pairs * d / rate, exponentials * pairs / found["exp_t_s"]) / 1e9
