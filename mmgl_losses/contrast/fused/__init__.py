"""The primitive in Triton kernels; features are rounded to the wanted precision to be multiplied.

Triton is imported with the first call, never before: only `arrange`, `launch` and the modules of kernels know it.
"""

import importlib
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mmgl_losses.checks import message
from mmgl_losses.contrast.problem import Gradients, Problem, Results, Upstream

NORMALISES: bool = True
_INSTALLED = find_spec("triton") is not None
_WIDEST = 256  # features
FORMULAS = {"supcon": True, "supcon_in": False, "decoupled": True, "mmgl_local": False}  # whether they use the sum


def refuses(problem: Problem) -> str | None:
    """Why this problem cannot go this way."""
    anchors, cure = problem.anchors, "Use impl='tiled', or impl='auto'."
    if not _INSTALLED:
        cure = "Install it with `pip install \"mmgl-losses[triton]\"` (torch for CUDA brings it), or use impl='auto'."
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
    with torch.cuda.device_of(problem.anchors):
        return kernels("launch").results(kernels("arrange").arrange(apart(problem)))


def backward(problem: Problem, upstream: Upstream, needed: tuple[bool, bool]) -> Gradients:
    """Gradients of the anchors and of the keys, each where it is `needed`."""
    launch = kernels("launch")
    with torch.cuda.device_of(problem.anchors):
        pairs = kernels("arrange").arrange(apart(problem))
        return gradients(problem, pairs, launch.factors(pairs, upstream), needed)


def takes(problem: Problem, formula: str) -> bool:
    """Whether `losses` has the formula, and what it needs is known without waiting for the device."""
    known = problem.limit is None or (problem.limit.device.type == "cpu" and problem.key_log_weights is None)
    return formula in FORMULAS and known and problem.pairs > 0


def losses(
    problem: Problem, formula: str, *, negatives: bool, average: bool, weight: float = 1.0
) -> tuple[Tensor, Any]:
    """The mean loss of each group (G,), or the average of those of any anchor (), times `weight`.

    And what `losses_backward` needs.
    """
    launch = kernels("launch")
    with torch.cuda.device_of(problem.anchors):
        pairs = kernels("arrange").arrange(apart(problem))
        total = FORMULAS[formula]
        return launch.losses(pairs, formula, negatives=negatives, average=average, weight=weight, total=total)


def losses_backward(problem: Problem, saved: Any, upstream: Tensor, needed: tuple[bool, bool]) -> Gradients:
    """Gradients of anchors and keys from that of the loss, each where it is `needed`."""
    pairs, factors = saved
    with torch.cuda.device_of(problem.anchors):
        pairs = pairs.of(apart(problem))
        return gradients(problem, pairs, {pairs.shifted[0]: factors._replace(upstream=upstream)}, needed)


def gradients(problem: Problem, pairs: Any, factors: Any, needed: tuple[bool, bool]) -> Gradients:
    """Gradients of the problem as it was given, from those of its two sides."""
    parted = pairs.problem.own != problem.own
    first, second = kernels("launch").weigh(pairs, factors, (needed[0], needed[0]) if parted else needed)
    if parted and first is not None and second is not None:
        first += second
        return first, None
    return first, second


def apart(problem: Problem) -> Problem:
    """The problem as kernels take it: where the anchors are the keys, every row that takes part is both.

    Rows that are only one of the two make anchors and keys two sides, of the same features.
    """
    anchor_mask, key_mask = problem.anchor_mask, problem.key_mask
    if not problem.own or key_mask is None or anchor_mask is key_mask:
        return problem
    if anchor_mask is not None and anchor_mask.is_set_to(key_mask):
        return problem
    place = torch.arange(problem.ids.shape[1], device=problem.ids.device).expand_as(problem.ids)
    return replace(problem, keys=problem.anchors, key_ids=problem.ids, self_index=place)


def kernels(module: str) -> Any:
    """A module of this package that imports Triton."""
    return importlib.import_module(f"{__name__}.{module}")
