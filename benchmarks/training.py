"""One step of each stage of training: the reference U-Net, heads, the loss, its gradients and the optimiser.

The difference of two contestants is a share: "network and heads" has no loss, "network" no heads either; what is
missing in them is replaced by a constant gradient.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import local
from benchmarks.case import Case, Contestant, Kind, Step
from benchmarks.workload import CLASSES, label_maps
from mmgl_losses import (
    DeepSupervisionDice,
    GlobalHead,
    LocalHead,
    MultiScaleGlobalContrast,
    MultiScaleLocalSupCon,
    SegmentationHead,
    UNet,
    attach_heads,
)
from mmgl_losses.sampling import resample, subsample

ENCODER = ("encoder.blocks.2", "encoder.blocks.3", "encoder.bottleneck")
DECODER = ("decoder.blocks.1", "decoder.blocks.2", "decoder.blocks.3")
WEIGHTS = (0.2, 0.2, 0.6)
STRIDE = 4
HIDDEN, EMBEDDING = 256, 128


class Training:
    """A network of widths d, 2d ... 16d, images (batch, 1, n, n) and their labels."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        channels = (case.d, 2 * case.d, 4 * case.d, 8 * case.d, 16 * case.d)
        self.images = torch.rand(case.batch, 1, case.n, case.n).to(case.device, case.torch_dtype)
        self.labels = label_maps(case.batch, (case.n, case.n)).to(case.device)
        self.net = UNet(1, CLASSES, channels=channels).to(case.device, case.torch_dtype)

    def step(
        self,
        head: Callable[[int], nn.Module],
        loss: Callable[[dict[str, Tensor]], Tensor],
        *,
        taps: Sequence[str] = DECODER,
        output: bool = False,
        augmentations: int = 1,
    ) -> Step:
        """A whole step with a head on each tap, and a loss on what they give and, if asked for, on the logits."""
        model = attach_heads(self.net, self.images, dict.fromkeys(taps, head), output=output)
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-5)
        images = self.images.repeat(augmentations, 1, 1, 1)

        def run() -> tuple[Tensor, None]:
            optimiser.zero_grad()
            logits, levels = model(images)
            value = loss({**levels, "output": logits} if output else levels)
            value.backward()
            optimiser.step()
            return value.detach(), None

        return run


def our_head(channels: int) -> nn.Module:
    """Takes the points first."""
    return LocalHead(channels, EMBEDDING, stride=STRIDE, hidden_channels=HIDDEN)


def plain_head(channels: int) -> nn.Module:
    """Maps all points, one convolution after the other; the loss takes some of them."""
    return nn.Sequential(nn.Conv2d(channels, HIDDEN, 1), nn.Conv2d(HIDDEN, EMBEDDING, 1))


def ours(problem: Training) -> Step:
    """Heads and loss of this library."""
    loss = MultiScaleLocalSupCon(weights=WEIGHTS, formula="mmgl")
    return problem.step(our_head, lambda embeddings: loss(list(embeddings.values()), problem.labels))


def plain(problem: Training) -> Step:
    """The head at every point, then every fourth of its points, then the dense loss of `local.plain`."""

    def loss(embeddings: dict[str, Tensor]) -> Tensor:
        total = []
        for weight, level in zip(WEIGHTS, embeddings.values(), strict=True):
            points = subsample(level, STRIDE)
            labels = resample(problem.labels, points.shape[2:])
            args = points.flatten(2).mT, labels.flatten(1), local.TEMPERATURE, points.dtype
            total.append(weight * local.masked(*args))
        return torch.stack(total).sum()

    return problem.step(plain_head, loss)


def constant(embeddings: dict[str, Tensor]) -> Tensor:
    """A gradient of the same numbers for every element, in hardly any time."""
    return torch.stack([level.mean() for level in embeddings.values()]).sum()


def segmentation_head(channels: int) -> nn.Module:
    """Logits of a level."""
    return SegmentationHead(channels, CLASSES)


def encoder(problem: Training) -> Step:
    """Each image in two augmentations."""
    return problem.step(GlobalHead, MultiScaleGlobalContrast(weights=WEIGHTS), taps=ENCODER, augmentations=2)


def fine_tuning(problem: Training) -> Step:
    """Deep supervision of the last two levels and the output."""
    loss = DeepSupervisionDice(weights=WEIGHTS, cross_entropy=0.5)
    return problem.step(
        segmentation_head,
        lambda levels: loss(list(levels.values()), problem.labels),
        taps=DECODER[:2],
        output=True,
    )


def bare(**options: Any) -> Contestant:
    """The network alone."""
    return Contestant(lambda problem: problem.step(lambda channels: nn.Identity(), constant, **options))


ENCODER_STEP = Kind(
    Training, {"ours": Contestant(encoder, "nt_xent", ours=True), "network": bare(taps=ENCODER, augmentations=2)}
)
DECODER_STEP = Kind(
    Training,
    {
        "ours": Contestant(ours, "mmgl", ours=True),
        "network and our heads": Contestant(lambda problem: problem.step(our_head, constant)),
        "network": bare(),
        "plain": Contestant(plain, "mmgl"),
        "network and plain heads": Contestant(lambda problem: problem.step(plain_head, constant)),
    },
)
FINE_TUNING_STEP = Kind(
    Training, {"ours": Contestant(fine_tuning, ours=True), "network": bare(taps=DECODER[:2], output=True)}
)
