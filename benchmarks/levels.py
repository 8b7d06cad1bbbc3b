"""The losses that need few pairs: the global contrast of three levels, and Dice of four levels."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.case import Case, Contestant, Kind, Step
from benchmarks.workload import label_maps
from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast

TEMPERATURE = 0.07
GLOBAL_WEIGHTS = (0.2, 0.2, 0.6)
DICE_WEIGHTS = (0.1, 0.2, 0.3, 0.4)  # coarse to fine
SMOOTH = 1e-5


class Embeddings:
    """Three leaves (n, d): two augmentations of n / 2 images."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(0)
        values = torch.randn(len(GLOBAL_WEIGHTS), case.n, case.d, generator=generator)
        self.levels = [x.to(case.device, case.torch_dtype).requires_grad_() for x in values]

    def finish(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the gradients of all levels."""
        return loss.detach(), torch.stack(torch.autograd.grad(loss, self.levels))


def our_global(formula: str) -> Callable[[Embeddings], Step]:
    """What a user of this library calls."""
    loss = MultiScaleGlobalContrast(temperature=TEMPERATURE, weights=GLOBAL_WEIGHTS, formula=formula)
    return lambda problem: lambda: problem.finish(loss(problem.levels))


def level_by_level(loss: Callable[[Tensor], Tensor]) -> Callable[[Embeddings], Step]:
    """A loss of one level, for all of them."""

    def make(problem: Embeddings) -> Step:
        def step() -> tuple[Tensor, Tensor]:
            levels = zip(GLOBAL_WEIGHTS, problem.levels, strict=True)
            return problem.finish(torch.stack([weight * loss(level) for weight, level in levels]).sum())

        return step

    return make


def nt_xent(embeddings: Tensor) -> Tensor:
    """NT-Xent as people write it."""
    z = F.normalize(embeddings, dim=1)
    n = len(z)
    itself = torch.eye(n, dtype=torch.bool, device=z.device)
    logits = (z @ z.T / TEMPERATURE).masked_fill(itself, -torch.inf)
    return F.cross_entropy(logits, (torch.arange(n, device=z.device) + n // 2) % n)


def printed_global(embeddings: Tensor) -> Tensor:
    """The paper's equation: the denominator is over all rows, the row itself among them, but the positive."""
    z = F.normalize(embeddings, dim=1)
    n = len(z)
    logits = z @ z.T / TEMPERATURE
    target = (torch.arange(n, device=z.device) + n // 2) % n
    positive = F.one_hot(target, n).bool()
    rest = logits.masked_fill(positive, -torch.inf).logsumexp(1)
    return (rest - (logits * positive).sum(1)).mean()


def peer(make: Callable[[], Callable[..., Tensor]], *, halves: bool) -> Callable[[Embeddings], Step]:
    """A peer's loss, made when it is asked for; it takes two halves, or rows and their instances."""

    def build(problem: Embeddings) -> Step:
        loss = make()

        def one(embeddings: Tensor) -> Tensor:
            if halves:
                return loss(*embeddings.chunk(2))
            return loss(embeddings, torch.arange(len(embeddings) // 2, device=embeddings.device).repeat(2))

        return level_by_level(one)(problem)

    return build


def _monai() -> Callable[..., Tensor]:
    from monai.losses.contrastive import ContrastiveLoss

    return ContrastiveLoss(temperature=TEMPERATURE)


def _metric_learning() -> Callable[..., Tensor]:
    from pytorch_metric_learning.losses import NTXentLoss

    return NTXentLoss(temperature=TEMPERATURE)


def exact_global(problem: Embeddings, formula: str) -> tuple[Tensor, Tensor]:
    """In float64, from the definition, anchor by anchor and pair by pair."""
    leaves = [level.detach().double().requires_grad_() for level in problem.levels]
    total = leaves[0].new_zeros(())
    for weight, z in zip(GLOBAL_WEIGHTS, leaves, strict=True):
        z, n = z / z.norm(dim=1, keepdim=True), len(z)
        for i in range(n):
            logits, partner = z @ z[i] / TEMPERATURE, (i + n // 2) % n
            left_out = partner if formula == "mmgl" else i
            rest = torch.cat([logits[:left_out], logits[left_out + 1 :]]).exp().sum().log()
            total = total + weight / n * (rest - logits[partner])
    return total.detach(), torch.stack(torch.autograd.grad(total, leaves))


class Logits:
    """Four leaves (batch, d, side, side), coarse to fine, the finest of side n, and labels of side n."""

    def __init__(self, case: Case) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = label_maps(case.batch, (case.n, case.n)).to(case.device)
        self.classes = case.d
        self.levels = []
        for halvings in reversed(range(len(DICE_WEIGHTS))):
            side = case.n >> halvings
            values = torch.randn(case.batch, case.d, side, side, generator=generator)
            self.levels.append(values.to(case.device, case.torch_dtype).requires_grad_())

    def finish(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the gradients of all levels."""
        return loss.detach(), torch.cat([x.flatten() for x in torch.autograd.grad(loss, self.levels)])


def our_dice(problem: Logits) -> Step:
    """What a user of this library calls."""
    loss = DeepSupervisionDice(weights=DICE_WEIGHTS, smooth=SMOOTH)
    return lambda: problem.finish(loss(problem.levels, problem.labels))


def one_hot_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Soft Dice over the batch, from one-hot labels of the same size."""
    p, truth = logits.softmax(1), F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    both, either = ((p * truth).sum((0, 2, 3)), (p + truth).sum((0, 2, 3)))
    return 1 - ((2 * both + SMOOTH) / (either + SMOOTH)).mean()


def at_full_size(problem: Logits) -> Step:
    """Every level is enlarged to the size of the labels first: what people write."""

    def step() -> tuple[Tensor, Tensor]:
        size = problem.labels.shape[1:]
        large = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in problem.levels]
        parts = [w * one_hot_dice(x, problem.labels) for w, x in zip(DICE_WEIGHTS, large, strict=True)]
        return problem.finish(torch.stack(parts).sum())

    return step


def at_each_size(problem: Logits) -> Step:
    """Labels are brought to every level, by nearest neighbour, and made one-hot there."""

    def step() -> tuple[Tensor, Tensor]:
        parts = []
        for weight, x in zip(DICE_WEIGHTS, problem.levels, strict=True):
            labels = F.interpolate(problem.labels[:, None].float(), size=x.shape[2:], mode="nearest-exact")[:, 0]
            parts.append(weight * one_hot_dice(x, labels.long()))
        return problem.finish(torch.stack(parts).sum())

    return step


def monai_dice(problem: Logits) -> Step:
    """DeepSupervisionLoss around DiceLoss of MONAI, which go from fine to coarse."""
    from monai.losses.dice import DiceLoss
    from monai.losses.ds_loss import DeepSupervisionLoss

    dice = DiceLoss(to_onehot_y=True, softmax=True, batch=True, smooth_nr=SMOOTH, smooth_dr=SMOOTH)
    loss = DeepSupervisionLoss(dice, weights=list(reversed(DICE_WEIGHTS)))
    labels = problem.labels[:, None].float()
    return lambda: problem.finish(loss(problem.levels[::-1], labels))


def exact_dice(problem: Logits, formula: str) -> tuple[Tensor, Tensor] | None:
    """In float64, from the definition; only of Dice at each level's own size."""
    if formula != "at each size":
        return None
    leaves = [level.detach().double().requires_grad_() for level in problem.levels]
    total = leaves[0].new_zeros(())
    for weight, x in zip(DICE_WEIGHTS, leaves, strict=True):
        step = problem.labels.shape[-1] // x.shape[-1]
        labels = problem.labels[:, step // 2 :: step, step // 2 :: step]
        p = x.softmax(1)
        for k in range(x.shape[1]):
            truth = labels == k
            ratio = (2 * p[:, k][truth].sum() + SMOOTH) / (p[:, k].sum() + truth.sum() + SMOOTH)
            total = total + weight * (1 - ratio) / x.shape[1]
    return total.detach(), torch.cat([x.flatten() for x in torch.autograd.grad(total, leaves)])


GLOBAL = Kind(
    Embeddings,
    {
        "ours": Contestant(our_global("nt_xent"), "nt_xent", ours=True),
        "plain": Contestant(level_by_level(nt_xent), "nt_xent"),
        "pytorch-metric-learning": Contestant(peer(_metric_learning, halves=False), "nt_xent"),
        "MONAI": Contestant(peer(_monai, halves=True), "nt_xent"),
        "ours, as printed": Contestant(our_global("mmgl"), "mmgl", ours=True),
        "plain, as printed": Contestant(level_by_level(printed_global), "mmgl"),
    },
    exact_global,
)
DICE = Kind(
    Logits,
    {
        "ours": Contestant(our_dice, "at each size", ours=True),
        "one-hot at each size": Contestant(at_each_size, "at each size"),
        "one-hot at full size": Contestant(at_full_size, "at full size"),
        "MONAI": Contestant(monai_dice, "at each size"),
    },
    exact_dice,
)
