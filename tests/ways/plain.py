"""The plain loop that every other way to run is compared with: two losses on taps, three steps of SGD."""

import torch
from torch import Tensor, nn

from mmgl_losses import (
    DeepSupervisionDice,
    GlobalHead,
    LocalHead,
    MultiScaleGlobalContrast,
    MultiScaleLocalSupCon,
    TappedModel,
    UNet,
    attach_heads,
)

GLOBAL = MultiScaleGlobalContrast(weights={"encoder.pools.1": 0.4, "encoder.up": 0.6}, temperature=0.3)
LOCAL = MultiScaleLocalSupCon(weights={"decoder.blocks.0": 1.0}, temperature=0.3, pairs="batch")
DICE = DeepSupervisionDice(weights=(1.0,))
STEPS = 3


def model(dtype: torch.dtype = torch.float64) -> TappedModel:
    """Always the same one."""
    torch.manual_seed(0)
    net = UNet(1, 3, channels=(4, 6, 8)).to(dtype)
    heads = {"encoder.pools.1": GlobalHead, "encoder.up": GlobalHead, "decoder.blocks.0": LocalHead}
    return attach_heads(net, torch.zeros(2, 1, 16, 16, dtype=dtype), heads)


def batches(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    """Images, two augmentations of each one below the other, and labels; one batch for each step."""
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(STEPS, 4, 1, 16, 16, generator=generator, dtype=dtype)
    labels = torch.randint(3, (STEPS, 4, 16, 16), generator=generator)
    return list(zip(images, labels, strict=True))


def loss_of(result: tuple[Tensor, dict[str, Tensor]], labels: Tensor) -> Tensor:
    """The three losses on one pass."""
    output, features = result
    embeddings = {name: features[name] for name in GLOBAL.weights}
    points = {name: features[name] for name in LOCAL.weights}
    return GLOBAL(embeddings) + LOCAL(points, labels) + DICE([output], labels)


def optimiser(trained: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.5)


def trained(dtype: torch.dtype = torch.float64) -> TappedModel:
    """The model after the plain loop."""
    plain = model(dtype)
    steps = optimiser(plain)
    for images, labels in batches(dtype):
        steps.zero_grad()
        loss_of(plain(images), labels).backward()
        steps.step()
    return plain


def same_parameters(one: nn.Module, other: nn.Module, *, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    """Parameters and buffers of two models, and that training moved them."""
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
    fresh = model(next(one.parameters()).dtype).state_dict()
    assert any((mine[name] - fresh[name]).abs().max() > 1e-4 for name in mine if name.endswith("weight"))
