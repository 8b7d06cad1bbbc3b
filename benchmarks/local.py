"""The local loss of one level: from features (b, n, d) and labels (b, n) to the loss and its gradient, in many ways.

The formula they have in common is the paper's as printed, ``"mmgl"``: it needs the log-sum-exps over the positives and
over the negatives, so nobody can leave out half of the pairs. Libraries that only have SupCon compute that, one
log-sum-exp and a sum, and stand beside ours with the same formula. All of them normalise the features themselves.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Contestant, Kind, Step
from benchmarks.workload import label_maps, point_features, shape
from mmgl_losses.contrast import arguments, fused
from mmgl_losses.contrast.problem import Upstream
from mmgl_losses.functional import local_supcon

TEMPERATURE = 0.07
BACKEND = "inductor"  # of torch.compile
STRIP = {"cpu": 512, "cuda": 4096}  # rows of the bare products, so that they fit at any size


class Problem:
    """Features (b, n, d), a leaf, and labels (b, n) in the order of the map."""

    def __init__(self, case: Case, *, temperature: float = TEMPERATURE, pull: float = 0.0) -> None:
        labels = label_maps(case.batch, shape(case.n)).flatten(1)
        features = point_features(labels, case.d, pull=pull)
        self.features = features.to(case.device, case.torch_dtype).requires_grad_()
        self.labels = labels.to(case.device)
        self.dtype, self.temperature = case.torch_dtype, temperature

    def finish(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the gradient of the features."""
        return loss.detach(), torch.autograd.grad(loss, self.features)[0]


def ours(impl: str, formula: str = "mmgl") -> Callable[[Problem], Step]:
    """What a user of this library calls."""

    def make(problem: Problem) -> Step:
        def step() -> tuple[Tensor, Tensor]:
            features = problem.features.mT  # a map (b, d, n) whose points lie one after another
            temperature = problem.temperature
            loss = local_supcon(features, problem.labels, temperature=temperature, formula=formula, impl=impl)
            return problem.finish(loss)

        return step

    return make


def by_rows(problem: Problem) -> Step:
    """The fused implementation with its deterministic forward."""
    usual = ours("fused")(problem)

    def step() -> tuple[Tensor, Tensor | None]:
        with patch.object(torch, "are_deterministic_algorithms_enabled", lambda: True):  # without filling memory
            return usual()

    return step


def sorted_pairs(problem: Problem) -> tuple[Any, Any]:
    """What launches the kernels, and what they are given: unit vectors, sorted."""
    posed = arguments.pose(
        F.normalize(problem.features.detach().float(), dim=-1),
        problem.labels,
        temperature=problem.temperature,
        bound=1.0,
        precision=problem.dtype,
    )
    return fused.kernels("launch"), fused.kernels("arrange").arrange(posed)


def kernels(problem: Problem) -> Step:
    """The kernels of pairs alone, and the short one between them: what a floor can be held against."""
    launch, pairs = sorted_pairs(problem)
    one = torch.ones((), device=problem.labels.device)

    def step() -> tuple[Tensor, Tensor | None]:
        options = {"negatives": True, "average": True, "weight": 1.0, "total": False}
        loss, (_, factors) = launch.losses(pairs, "mmgl_local", **options)
        found = {pairs.shifted[0]: factors._replace(upstream=one)}
        return loss, launch.weigh(pairs, found, (True, False))[0]

    return step


class Caught:
    """Stands for a kernel: launches it, and keeps the launches."""

    def __init__(self, kernel: Any, launches: list[Callable[[], object]]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: Any, **options: Any) -> None:
            again = partial(self.kernel[grid], *arguments, **options)
            self.launches.append(again)
            again()

        return launch


def one_kernel(problem: Problem, kernel: str) -> Callable[[], object]:
    """The launch of "credit", "rows" or "weigh" alone, on operands that are ready."""
    found: list[Callable[[], object]] = []
    with patch.object(fused.kernels("plan"), "FEW", 0):  # as for many points
        launch, pairs = sorted_pairs(problem)
        place = launch.gradients if kernel == "weigh" else launch.sums
        with patch.object(place, kernel, Caught(getattr(place, kernel), found)):
            if kernel == "weigh":
                # The log-sum-exps of equal logits, and an upstream of ones: what they are does not matter to the time.
                lse = torch.full(problem.labels.shape, 8.0, device=problem.labels.device)
                ones = torch.ones_like(lse)
                launch.weigh(pairs, launch.factors(pairs, Upstream((lse, lse), (ones, ones), None)), (True, False))
            else:
                with patch.object(torch, "are_deterministic_algorithms_enabled", lambda: kernel == "rows"):
                    launch.sum_pairs(pairs, total=False)
    (only,) = found
    return only


def unit(features: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """Features whose products are logits, in the type that multiplies."""
    return (F.normalize(features.float(), dim=-1) * temperature**-0.5).to(dtype)


def printed(positives: Tensor, negatives: Tensor, count: Tensor) -> Tensor:
    """The formula as printed, from both log-sum-exps and the number of positives (b, n); the mean over valid points."""
    valid = (count > 0) & (count < count.shape[-1] - 1)
    losses = torch.where(valid, negatives - positives, 0.0) / count.clamp(min=1)
    return (losses.sum(-1) / valid.sum(-1)).mean()


def masked(features: Tensor, labels: Tensor, temperature: float, dtype: torch.dtype) -> Tensor:
    """All pairs at once, two masks and two log-sum-exps: what people write."""
    z = unit(features, temperature, dtype)
    logits = (z @ z.mT).float()
    same = labels[..., :, None] == labels[..., None, :]
    count = same.sum(-1) - 1
    itself = torch.eye(labels.shape[-1], dtype=torch.bool, device=labels.device)
    positives = logits.masked_fill(~same | itself, -torch.inf).logsumexp(-1)
    negatives = logits.masked_fill(same, -torch.inf).logsumexp(-1)
    return printed(positives, negatives, count)


def plain(problem: Problem) -> Step:
    """Plain torch, dense."""
    return lambda: problem.finish(masked(problem.features, problem.labels, problem.temperature, problem.dtype))


def compiled(problem: Problem) -> Step:
    """The same under torch.compile."""
    fast = torch.compile(masked, dynamic=False, backend=BACKEND)
    return lambda: problem.finish(fast(problem.features, problem.labels, problem.temperature, problem.dtype))


def by_image(problem: Problem, loss: Callable[[Tensor, Tensor], Tensor]) -> Step:
    """A loss of one image, each with its own backward: no two images are held at once."""

    def step() -> tuple[Tensor, Tensor]:
        total, grads = torch.zeros((), device=problem.labels.device), []
        for features, labels in zip(problem.features, problem.labels, strict=True):
            leaf = features.detach().requires_grad_()
            part = loss(leaf, labels) / len(problem.labels)
            grads.append(torch.autograd.grad(part, leaf)[0])
            total += part.detach()
        return total, torch.stack(grads)

    return step


def supcontrast(problem: Problem) -> Step:
    """SupCon in the style of its authors' code: a row's maximum off, a mask of floats, log-probabilities."""

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        z = unit(features, problem.temperature, problem.dtype)
        logits = (z @ z.T).float()
        logits = logits - logits.amax(1, keepdim=True).detach()
        others = 1 - torch.eye(len(labels), device=labels.device)
        positive = (labels[:, None] == labels).float() * others
        log_probability = logits - (logits.exp() * others).sum(1, keepdim=True).log()
        count = positive.sum(1)
        losses = -(positive * log_probability).sum(1) / count.clamp(min=1)
        return losses.sum() / (count > 0).sum()

    return by_image(problem, loss)


def metric_learning(problem: Problem) -> Step:
    """SupConLoss of pytorch-metric-learning."""
    from pytorch_metric_learning.losses import SupConLoss

    return by_image(problem, SupConLoss(temperature=problem.temperature))


def flex(problem: Problem) -> Step:
    """Two calls of flex_attention, whose log-sum-exps have gradients; sorting and block masks are not counted."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    order = problem.labels.argsort(1)
    labels = problem.labels.gather(1, order)
    index = order[..., None].expand_as(problem.features)
    batch, n = labels.shape
    count = torch.stack([torch.bincount(y)[y] - 1 for y in labels])

    def positive(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (labels[b, i] == labels[b, j]) & (i != j)

    def negative(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return labels[b, i] != labels[b, j]

    make = torch.compile(create_block_mask, dynamic=False)
    masks = [make(mod, batch, None, n, n, device=str(labels.device)) for mod in (positive, negative)]
    attend = torch.compile(flex_attention, dynamic=False)

    def step() -> tuple[Tensor, Tensor]:
        z = unit(problem.features.gather(1, index), problem.temperature, problem.dtype)[:, None]
        value = z.detach()[..., :16]  # not needed: as narrow as can be
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calls = [attend(z, z, value, block_mask=mask, scale=1.0, return_lse=True) for mask in masks]
        positives, negatives = (lse[:, 0] for _, lse in calls)
        return problem.finish(printed(positives, negatives, count))

    return step


def products(count: int) -> Callable[[Problem], Step]:
    """Two or three bare products of all pairs, in strips: no loss, only what any way of computing it must do."""

    def make(problem: Problem) -> Step:
        z = unit(problem.features.detach(), problem.temperature, problem.dtype)
        images = z[:, None] if z.device.type == "cpu" else z[None]  # one by one, or all together
        rows = min(STRIP[z.device.type], z.shape[1])
        strip = torch.empty(images.shape[1], rows, z.shape[1], dtype=z.dtype, device=z.device)
        out, other = torch.empty_like(images), torch.zeros_like(images[0])

        def step() -> tuple[Tensor, None]:
            for image, result in zip(images, out, strict=True):
                for top in range(0, z.shape[1], rows):
                    block = image[:, top : top + rows]
                    part = torch.bmm(block, image.mT, out=strip[:, : block.shape[1]])
                    torch.bmm(part, image, out=result[:, top : top + rows])
                    if count == 3:
                        torch.baddbmm(other, part.mT, block, out=other)
            return out.flatten()[0], None

        return step

    return make


def exact(problem: Problem, formula: str) -> tuple[Tensor, Tensor]:
    """The loss and its gradient in float64, a few rows of pairs at a time."""
    x = problem.features.detach().double().requires_grad_()
    unit_features = F.normalize(x, dim=-1)
    total, grads = 0.0, []
    for image, y in zip(unit_features.detach(), problem.labels, strict=True):
        z = image.clone().requires_grad_()
        count = torch.bincount(y)[y] - 1
        valid = (count > 0) & (count < len(y) - 1) if formula == "mmgl" else count > 0
        weight = valid.double() / (valid.sum() * len(x) * count.clamp(min=1))
        for rows in torch.arange(len(y), device=y.device).split(256):
            logits = z[rows] @ z.T / problem.temperature
            alike = y[rows, None] == y
            itself = torch.zeros_like(alike).scatter(1, rows[:, None], True)
            positive = alike & ~itself
            if formula == "mmgl":
                lse = [logits.masked_fill(~mask, -torch.inf).logsumexp(1) for mask in (positive, ~alike)]
                losses = lse[1] - lse[0]
            else:
                lse = logits.masked_fill(itself, -torch.inf).logsumexp(1)
                losses = count[rows] * lse - torch.where(positive, logits, 0.0).sum(1)
            part = (torch.where(valid[rows], losses, 0.0) * weight[rows]).sum()
            part.backward()
            total += part.item()
        grads.append(z.grad)
    return torch.tensor(total, dtype=torch.float64), torch.autograd.grad(unit_features, x, torch.stack(grads))[0]


LOCAL = Kind(
    Problem,
    {
        "auto": Contestant(ours("auto"), "mmgl", ours=True),
        "native": Contestant(ours("native"), "mmgl", ours=True),
        "tiled": Contestant(ours("tiled"), "mmgl", ours=True),
        "fused": Contestant(ours("fused"), "mmgl", ours=True, cuda=True),
        "fused, deterministic": Contestant(by_rows, "mmgl", ours=True, cuda=True),
        "fused, kernels alone": Contestant(kernels, ours=True, cuda=True),
        "reference": Contestant(ours("reference"), "mmgl", pair_bytes=24, ours=True),
        "plain": Contestant(plain, "mmgl", pair_bytes=24),
        "plain, compiled": Contestant(compiled, "mmgl", pair_bytes=9),
        "flex_attention": Contestant(flex, "mmgl", cuda=True),
        "auto, SupCon": Contestant(ours("auto", "supcon"), "supcon", ours=True),
        "fused, SupCon": Contestant(ours("fused", "supcon"), "supcon", ours=True, cuda=True),
        "SupContrast style": Contestant(supcontrast, "supcon", pair_bytes=30, all_images=False),
        "pytorch-metric-learning": Contestant(metric_learning, "supcon", pair_bytes=46, all_images=False),
        "two products": Contestant(products(2)),
        "three products": Contestant(products(3)),
    },
    exact,
    lambda case: case.batch * case.n**2,
)
