"""The primitive in C++ on the CPU: each pair of points once, tile by tile, with nothing of the size of all pairs.

`engine.cpp` and `tiles.cpp` are built into one small library beside this file, which knows nothing of torch: it is
called on the addresses of tensors. So one library serves every version of torch, needs none of its headers to be built,
and threads are its own, as many as torch would take. It is loaded with the first problem, and where it was not built,
this engine says so.
"""

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from mmgl_losses.checks import message
from mmgl_losses.contrast.problem import Gradients, Problem, Results, Upstream

LIBRARY = Path(__file__).with_name("engine.so")
MOST = 2  # instruction sets beyond what every processor has: AVX2, AVX-512
_THREADED = 1 << 27  # products from which on more threads pay: they start with a call and end with it
_ID_TYPES = {torch.int64: 0, torch.float32: 1, torch.float64: 2}
_ERRORS = {1: "not enough memory for the native engine", 2: "`self_index` outside of the keys"}
_pointer, _pair, _steps = ctypes.c_void_p, ctypes.c_void_p * 2, ctypes.c_int64 * 3


class _Call(ctypes.Structure):
    """`Call` of engine.cpp, field by field."""

    _fields_ = (
        *((name, _pointer) for name in ("anchors", "keys", "ids", "key_ids", "self_index", "anchor_mask", "key_mask")),
        *((name, _pointer) for name in ("log_weights", "limit")),
        *(("lse", _pair), ("total", _pointer), ("counts", _pair), ("upstream", _pair), ("gradient", _pair)),
        *((name, ctypes.c_int64) for name in ("groups", "n", "m", "features")),
        *(("anchor_steps", _steps), ("key_steps", _steps), ("threads", ctypes.c_int64)),
        *((name, ctypes.c_int32) for name in ("backward", "wide", "id_type", "has_tolerance", "most")),
        *((name, ctypes.c_double) for name in ("scale", "tolerance")),
    )


@cache
def library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not LIBRARY.exists():
        return "none, as the package was installed without a C++ compiler"
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.mmgl_solve.argtypes = [ctypes.POINTER(_Call)]
        found.mmgl_instruction_set.argtypes, found.mmgl_instruction_set.restype = [ctypes.c_int], ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return f"one that does not load ({error})"
    return found


def instruction_set() -> str:
    """What the library computes with on this processor."""
    found = library()
    assert isinstance(found, ctypes.CDLL)
    return found.mmgl_instruction_set(MOST).decode()


def refuses(problem: Problem) -> str | None:
    """Why this problem cannot go this way."""
    found, device = library(), problem.anchors.device
    if isinstance(found, str):
        cure = "Install the wheel of your platform, or install from source with g++ or clang++; or use impl='auto'."
        return message("the native library for impl='native'", found, cure)
    if device.type != "cpu":
        return message("tensors on the CPU for impl='native'", f"them on {device}", "Use impl='auto'.")
    return None


def suits(problem: Problem) -> bool:
    """Everything on the CPU, where the library was built."""
    return problem.anchors.device.type == "cpu" and not isinstance(library(), str)


def forward(problem: Problem) -> Results:
    """Log-sum-exps, sum of positive logits, and counts."""
    shape, like = problem.ids.shape, problem.anchors
    results = Results(
        *(torch.empty(shape, dtype=like.dtype) for _ in range(3)),
        *(torch.empty(shape, dtype=torch.int64) for _ in range(2)),
    )
    _solve(problem, lse=results[:2], total=results.positive_sum, counts=results[3:])
    return results


def backward(problem: Problem, upstream: Upstream, needed: tuple[bool, bool]) -> Gradients:
    """Gradients of the anchors and of the keys, each where it is `needed`."""
    wanted = (problem.anchors, needed[0] or problem.own), (problem.keys, needed[1])
    first, second = (torch.empty(x.shape, dtype=x.dtype) if x is not None and need else None for x, need in wanted)
    given = {"lse": upstream.logsumexps, "upstream": upstream.gradients, "total": upstream.positive_sum}
    _solve(problem, **given, gradient=(first, second))
    return first, second


def _solve(problem: Problem, **results: object) -> None:
    """Call the library, with the tensors in `results` beside the fields of the problem."""
    held: list[Tensor] = []  # until the call is over: what had to be copied

    def address(x: Tensor | None) -> int | None:
        if x is None:
            return None
        held.append(x.contiguous())
        return held[-1].data_ptr()

    anchors, keys = problem.anchors.resolve_neg(), problem.keys
    keys = None if keys is None else keys.resolve_neg()
    groups, n, features = anchors.shape
    call = _Call(
        anchors.data_ptr(),
        None if keys is None else keys.data_ptr(),
        *(address(x) for x in (problem.ids, problem.key_ids, problem.self_index)),
        *(address(x) for x in (problem.anchor_mask, problem.key_mask, problem.key_log_weights, problem.limit)),
        groups=groups,
        n=n,
        m=problem.others.shape[1],
        features=features,
        anchor_steps=anchors.stride(),
        key_steps=(0, 0, 0) if keys is None else keys.stride(),
        threads=torch.get_num_threads() if problem.pairs * features > _THREADED else 1,
        backward="gradient" in results,
        wide=anchors.dtype == torch.float64,
        id_type=_ID_TYPES[problem.ids.dtype],
        has_tolerance=problem.tolerance is not None,
        most=MOST,
        scale=problem.scale,
        tolerance=problem.tolerance or 0.0,
    )
    for name, value in results.items():
        setattr(call, name, address(value) if name == "total" else _pair(*map(address, value)))  # pyright: ignore
    error = library().mmgl_solve(ctypes.byref(call))  # pyright: ignore[reportAttributeAccessIssue]
    if error:
        raise (MemoryError if error == 1 else IndexError)(_ERRORS[error])
