"""The primitive in C++ on the CPU: each pair of points once, tile by tile, with nothing of the size of all pairs.

`engine.cpp` and `tiles.cpp` are built into one small library beside this file, which knows nothing of torch: it is
called on the addresses of tensors. So one library serves every version of torch, and needs none of its headers to be
built. It runs on the threads that torch's own operations run on. It is loaded with the first problem, and where it was
not built, this engine says so.
"""

import ctypes
import os
import struct
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmgl_losses.checks import message
from mmgl_losses.contrast.problem import Gradients, Problem, Results, Upstream

NORMALISES: bool = True
LIBRARY = Path(__file__).with_name("engine.so")
MOST = 2  # instruction sets beyond what every processor has: AVX2, AVX-512
_PROCESS = os.getpid()
_ID_TYPES = {torch.int64: 0, torch.float32: 1, torch.float64: 2}
_ERRORS = {1: "not enough memory for the native engine", 2: "`self_index` outside of the keys"}
# `Call` of engine.cpp, field by field: addresses (nine, then lse, total, counts, upstream, gradient, loss and share),
# sizes, steps, threads and the runtime, flags and numbers.
_CALL = struct.Struct("@9P 2P P 2P 2P 2P 2P 4q 3q 3q q 3P 9i 3d")
# In the order of `Formula` in engine.cpp: whether they use the sum of positive logits.
FORMULAS = {"supcon": True, "supcon_in": False, "decoupled": True, "mmgl_local": False, "mmgl_global": True}


class Mean(NamedTuple):
    """Of which formula there is a mean, and how it is taken; see `losses`."""

    formula: int
    negatives: bool
    average: bool
    weight: float


NO_MEAN = Mean(0, False, False, 0.0)


class Saved(NamedTuple):
    """What the gradient of a mean loss needs; each (G, N) but for `share`."""

    lse: Sequence[Tensor]  #: over positives, over negatives
    derivatives: Sequence[Tensor]  #: of the loss of an anchor by these two
    total: Tensor | None  #: and by the sum of positive logits
    share: Tensor  #: (G,) of each group: what the loss of an anchor counts in the mean
    mean: Mean


@cache
def library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    if not LIBRARY.exists():
        return "none, as the package was installed without a C++ compiler"
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.mmgl_solve.argtypes = [ctypes.c_char_p]
        found.mmgl_instruction_set.argtypes, found.mmgl_instruction_set.restype = [ctypes.c_int], ctypes.c_char_p
        fits = found.mmgl_call_size() == _CALL.size
    except (OSError, AttributeError) as error:
        return f"one that does not load ({error})"
    return found if fits else "one that was built from other sources"


@cache
def runtime(process: int) -> Sequence[int]:
    """`Runtime` of engine.cpp: what torch's operations run on, or nulls where that is not OpenMP.

    A process that was forked gets nulls, as its parent's threads are not in it and the runtime would wait for them.
    """
    if process != _PROCESS:
        return 0, 0, 0
    try:
        torch_itself = ctypes.CDLL(torch._C.__file__)  # a symbol is looked for in what it is linked with, too
        found = [getattr(torch_itself, name) for name in ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")]
    except (OSError, AttributeError):
        return 0, 0, 0
    return [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in found]


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
    _solve(problem, results[:2], results.positive_sum, counts=results[3:])
    return results


def backward(problem: Problem, upstream: Upstream, needed: tuple[bool, bool]) -> Gradients:
    """Gradients of the anchors and of the keys, each where it is `needed`."""
    gradient, (lse, gradients, total) = _gradients(problem, needed), upstream
    _solve(problem, lse, total, upstream=gradients, gradient=gradient, back=True)
    return gradient


def takes(problem: Problem, formula: str) -> bool:
    """Whether `losses` has the formula for this problem."""
    knows_itself = problem.unit or formula != "mmgl_global"  # the logit of an anchor with itself is the scale, then
    return formula in FORMULAS and knows_itself and problem.pairs > 0


def losses(problem: Problem, formula: str, *, negatives: bool, average: bool, weight: float) -> tuple[Tensor, Saved]:
    """The mean loss of each group (G,), or the average of those of any anchor (), times `weight`.

    And what `losses_backward` needs.
    """
    problem = problem.widened()
    mean = Mean(list(FORMULAS).index(formula), negatives, average, weight)
    like, (groups, n) = problem.anchors, problem.ids.shape
    loss, share = like.new_empty(() if average else (groups,)), like.new_empty(groups, dtype=torch.float64)
    *four, total = like.new_empty((5, groups, n)).unbind()
    saved = Saved(four[:2], four[2:], total if FORMULAS[formula] else None, share, mean)
    _solve(problem, saved.lse, saved.total, upstream=saved.derivatives, loss=loss, share=share, mean=mean)
    return loss, saved


def losses_backward(problem: Problem, saved: Saved, upstream: Tensor, needed: tuple[bool, bool]) -> Gradients:
    """Gradients of anchors and keys from that of the loss, each where it is `needed`."""
    wide = problem.widened()
    gradient = _gradients(wide, needed)
    upstream = upstream.to(wide.anchors.dtype)
    _solve(
        wide, saved.lse, saved.total, upstream=saved.derivatives, gradient=gradient, loss=upstream, share=saved.share,
        mean=saved.mean, back=True,
    )  # fmt: skip
    first, second = (x if x is None else x.to(problem.anchors.dtype) for x in gradient)
    return first, second


def _gradients(problem: Problem, needed: tuple[bool, bool]) -> Gradients:
    """Where gradients are to be written."""
    wanted = (problem.anchors, needed[0] or problem.own), (problem.keys, needed[1])
    first, second = (torch.empty(x.shape, dtype=x.dtype) if x is not None and need else None for x, need in wanted)
    return first, second


def _solve(
    problem: Problem,
    lse: Sequence[Tensor],
    total: Tensor | None,
    *,
    counts: Sequence[Tensor | None] = (None, None),
    upstream: Sequence[Tensor | None] = (None, None),
    gradient: Sequence[Tensor | None] = (None, None),
    loss: Tensor | None = None,
    share: Tensor | None = None,
    mean: Mean = NO_MEAN,
    back: bool = False,
) -> None:
    """Call the library on a problem and what belongs to it, as `Call` of engine.cpp says."""
    held: list[Tensor] = []  # until the call is over: what had to be copied

    def address(x: Tensor | None) -> int:
        if x is None:
            return 0
        held.append(x.contiguous())
        return held[-1].data_ptr()

    anchors, keys = problem.anchors.resolve_neg(), problem.keys
    keys = None if keys is None else keys.resolve_neg()
    call = _CALL.pack(
        anchors.data_ptr(),
        0 if keys is None else keys.data_ptr(),
        *map(address, (problem.ids, problem.key_ids, problem.self_index)),
        *map(address, (problem.anchor_mask, problem.key_mask, problem.key_log_weights, problem.limit)),
        *map(address, (*lse, total, *counts, *upstream, *gradient, loss, share)),
        anchors.shape[0],
        anchors.shape[1],
        problem.others.shape[1],
        anchors.shape[2],
        *anchors.stride(),
        *((0, 0, 0) if keys is None else keys.stride()),
        torch.get_num_threads(),
        *runtime(os.getpid()),
        back,
        anchors.dtype == torch.float64,
        _ID_TYPES[problem.ids.dtype],
        problem.tolerance is not None,
        problem.unit,
        MOST,
        *mean[:3],
        problem.scale,
        problem.tolerance or 0.0,
        mean.weight,
    )
    error = library().mmgl_solve(call)  # pyright: ignore[reportAttributeAccessIssue]
    if error:
        raise (MemoryError if error == 1 else IndexError)(_ERRORS[error])
