"""The primitive in Triton kernels; features are rounded to the wanted precision to be multiplied.

Triton is imported with the first call, never before: only `launch` and the modules of kernels know it.
"""

import importlib
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mmgl_losses.checks import message
from mmgl_losses.contrast.problem import Gradients, Problem, Results, Upstream
from mmgl_losses.contrast.ranges import Sorted, sort, unsort

NORMALISES: bool = False
_INSTALLED = find_spec("triton") is not None
_WIDEST = 256  # features


def refuses(problem: Problem) -> str | None:
    """Why this problem cannot go this way."""
    anchors, cure = problem.anchors, "Use impl='tiled', or impl='auto'."
    if not _INSTALLED:
        cure = "`pip install triton` (it comes with torch for CUDA), or use impl='auto'."
        return message("Triton to be installed for impl='fused'", "none", cure)
    if torch.float64 in (anchors.dtype, problem.precision):
        return message("features in float32 or half precision for impl='fused'", torch.float64, cure)
    if anchors.shape[-1] > _WIDEST:
        return message(f"features of at most {_WIDEST} numbers for impl='fused'", anchors.shape[-1], cure)
    if not anchors.is_cuda and not importlib.import_module("triton").knobs.runtime.interpret:
        return message("tensors on a CUDA device for impl='fused'", f"them on {anchors.device}", cure)
    return None


def suits(problem: Problem) -> bool:
    """Not yet: the kernels have not been measured on a GPU."""
    return False


def forward(problem: Problem) -> Results:
    """Log-sum-exps, sum of positive logits, and counts."""
    launch, pairs = ready(apart(problem))
    with torch.cuda.device_of(problem.anchors):
        results = *launch.forward(pairs, problem.precision), pairs.positive_sum(), *pairs.counts()
        return Results(*(unsort(x, pairs.order) for x in results)).masked(problem.anchor_mask)


def backward(problem: Problem, upstream: Upstream, needed: tuple[bool, bool]) -> Gradients:
    """Gradients of the anchors and of the keys, each where it is `needed`."""
    parted = apart(problem)
    launch, pairs = ready(parted)
    upstream = upstream.at(pairs.order)
    if parted is not problem:
        needed = needed[0], needed[0]
    with torch.cuda.device_of(problem.anchors):
        found = launch.backward(pairs, problem.precision, upstream, needed)
        if upstream.positive_sum is not None:
            more = pairs.positive_sum_backward(upstream.positive_sum, needed)
            found = (x if y is None else y if x is None else x.add_(y) for x, y in zip(found, more, strict=True))
        first, second = pairs.given(*found)
        if parted is not problem and first is not None and second is not None:
            first += second
            second = None
        return first, second


def apart(problem: Problem) -> Problem:
    """The problem as kernels take it: where the anchors are the keys, every row that takes part is both.

    Rows that are only one of the two make anchors and keys two sides, of the same features.
    """
    anchor_mask, key_mask = problem.anchor_mask, problem.key_mask
    if not problem.own or key_mask is None or (anchor_mask is not None and anchor_mask.is_set_to(key_mask)):
        return problem
    place = torch.arange(problem.ids.shape[1], device=problem.ids.device).expand_as(problem.ids)
    return replace(problem, keys=problem.anchors, key_ids=problem.ids, self_index=place)


def ready(problem: Problem) -> tuple[Any, Sorted]:
    """What launches the kernels, and the sorted problem as they read it."""
    pairs = sort(problem)
    tensors = {field.name: getattr(pairs, field.name) for field in fields(pairs)}
    whole = {name: x.contiguous() for name, x in tensors.items() if isinstance(x, Tensor)}
    return importlib.import_module("mmgl_losses.contrast.fused.launch"), replace(pairs, **whole)
