"""Who is measured on a GPU: one step (log-sum-exps of positives and negatives, a loss, its gradient) in several ways.

All get the same features in float32 and their labels, sorted. The implementations of this library sort them all the
same, as they do in use; "fused, kernels alone" has that behind it.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from mmgl_losses.contrast import fused, tiled
from mmgl_losses.contrast.pairs import Pairs, build

TEMPERATURE = 0.07
BACKGROUND = 0.8  # share of the points of class 0; seven more classes share the rest
Step = Callable[[], tuple[Tensor, Tensor]]


class Problem:
    """Unit features (b, n, d) on a device, labels (b, n) sorted, and the sorted form of the contrast."""

    def __init__(self, batch: int, n: int, d: int, dtype: torch.dtype, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(n)
        features = torch.randn(batch, n, d, device=device, generator=generator)
        self.z = torch.nn.functional.normalize(features, dim=-1).requires_grad_()
        rank = torch.arange(n, device=device) / n
        labels = torch.where(rank < BACKGROUND, 0, 1 + ((rank - BACKGROUND) / (1 - BACKGROUND) * 7).floor()).long()
        self.labels = labels.expand(batch, n).contiguous()
        self.lonely = torch.bincount(self.labels[0])[self.labels] < 2
        self.dtype, self.batch, self.n, self.d = dtype, batch, n, d

    def pairs(self) -> Pairs:
        """The sorted form, with a graph to the features."""
        return build(self.z, self.labels, temperature=TEMPERATURE, bound=1.0).pairs

    def finish(self, positives: Tensor, negatives: Tensor, leaf: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss over the points that have positives, and the gradient of the features, or of `leaf`."""
        positives, negatives = (torch.where(self.lonely, 0.0, x) for x in (positives, negatives))
        loss = (torch.logaddexp(positives, negatives) - positives).mean()
        return loss.detach(), torch.autograd.grad(loss, self.z if leaf is None else leaf)[0]


@contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Deterministic algorithms within, and new memory full of NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def kernels(problem: Problem) -> Step:
    """The fused implementation, as it comes."""

    def step() -> tuple[Tensor, Tensor]:
        return problem.finish(*fused.pair_logsumexp(problem.pairs(), problem.dtype))

    return step


def kernels_alone(problem: Problem) -> Step:
    """The fused implementation from the sorted form on, to the gradient of its scaled features."""
    pairs = problem.pairs()
    anchors = pairs.anchors.detach().requires_grad_()
    pairs = pairs._replace(anchors=anchors)

    def step() -> tuple[Tensor, Tensor]:
        loss, grad = problem.finish(*fused.pair_logsumexp(pairs, problem.dtype), anchors)
        return loss, grad.mul_(TEMPERATURE**-0.5)

    return step


def kernels_by_rows(problem: Problem) -> Step:
    """The fused implementation with its deterministic forward."""

    def step() -> tuple[Tensor, Tensor]:
        with patch.object(torch, "are_deterministic_algorithms_enabled", lambda: True):  # without filling memory
            return problem.finish(*fused.pair_logsumexp(problem.pairs(), problem.dtype))

    return step


def strips(problem: Problem) -> Step:
    """The implementation in plain torch, float32."""

    def step() -> tuple[Tensor, Tensor]:
        return problem.finish(*tiled.pair_logsumexp(problem.pairs()))

    return step


def dense_lse(z: Tensor, labels: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """All pairs at once: what people write."""
    scaled = (z * TEMPERATURE**-0.5).to(dtype)
    logits = (scaled @ scaled.mT).float()
    same = labels[:, :, None] == labels[:, None, :]
    itself = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    positives = logits.masked_fill(~same | itself, -torch.inf).logsumexp(-1)
    return positives, logits.masked_fill(same, -torch.inf).logsumexp(-1)


def dense(problem: Problem) -> Step:
    """Plain torch, all pairs at once."""

    def step() -> tuple[Tensor, Tensor]:
        return problem.finish(*dense_lse(problem.z, problem.labels, problem.dtype))

    return step


def dense_compiled(problem: Problem) -> Step:
    """The same, compiled."""
    backend = "inductor" if problem.z.is_cuda else "aot_eager"
    compiled = torch.compile(dense_lse, backend=backend, dynamic=False)

    def step() -> tuple[Tensor, Tensor]:
        return problem.finish(*compiled(problem.z, problem.labels, problem.dtype))

    return step


def flex(problem: Problem) -> Step:
    """Two calls of flex_attention whose log-sum-exps have gradients; the block masks are not counted."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    labels, n = problem.labels, problem.n

    def positive(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (labels[b, i] == labels[b, j]) & (i != j)

    def negative(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return labels[b, i] != labels[b, j]

    make = torch.compile(create_block_mask, dynamic=False) if problem.z.is_cuda else create_block_mask
    masks = [make(mod, problem.batch, None, n, n, device=str(problem.z.device)) for mod in (positive, negative)]
    attend = torch.compile(flex_attention, dynamic=False) if problem.z.is_cuda else flex_attention

    def step() -> tuple[Tensor, Tensor]:
        z = (problem.z * TEMPERATURE**-0.5).to(problem.dtype)[:, None]
        value = z.detach()[..., :16]  # not needed: as narrow as can be
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lse = [attend(z, z, value, block_mask=mask, scale=1.0, return_lse=True)[1][:, 0] for mask in masks]
        return problem.finish(*lse)

    return step


def products(problem: Problem) -> Step:
    """Three bare matrix products of all pairs: no loss, only what any dense computation must at least do."""
    z = (problem.z.detach() * TEMPERATURE**-0.5).to(problem.dtype)

    def step() -> tuple[Tensor, Tensor]:
        pairs = z @ z.mT
        return (pairs @ z)[0, 0, 0], pairs.mT @ z

    return step


CONTESTANTS: dict[str, Callable[[Problem], Step]] = {
    "fused": kernels,
    "fused, kernels alone": kernels_alone,
    "fused, deterministic": kernels_by_rows,
    "tiled": strips,
    "dense": dense,
    "dense, compiled": dense_compiled,
    "flex_attention": flex,
    "three products": products,
}
