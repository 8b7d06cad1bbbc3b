"""Train a U-Net in the three stages of MMGL, beside the same network from random initialisation.

    pip install mmgl-losses matplotlib
    python three_stages.py          # about two minutes on a CPU: prints Dice, saves three_stages.png

The images are slices of a made-up chest with four labelled structures. Twenty-four patients train, and one has labels.
Both networks are fine-tuned alike: the same patient, number of steps, augmentation and deep supervision.
"""

import argparse
import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mmgl_losses as mmgl

STRUCTURES = ("LV", "MYO", "RV", "aorta")
SIZE = 48


def patient(number: int, slices: int = 8) -> tuple[Tensor, Tensor]:
    """The slices of one chest: images (slices, 1, 64, 64) and labels (slices, 64, 64)."""
    generator = torch.Generator().manual_seed(number)
    draw = lambda low, high: low + (high - low) * torch.rand((), generator=generator).item()  # noqa: E731
    y, x = torch.meshgrid(torch.linspace(-1, 1, SIZE), torch.linspace(-1, 1, SIZE), indexing="ij")
    y, x, size = y + draw(-0.1, 0.1), x + draw(-0.1, 0.1), draw(0.85, 1.15)
    tissue, lung, muscle, blood = draw(0.35, 0.6), draw(0.05, 0.2), draw(0.4, 0.6), draw(0.6, 0.95)
    ellipses = [  # label (0 is background), centre, radii, intensity: painted one over the other
        (0, 0.0, 0.0, 0.92, 0.75, tissue),
        (0, -0.5, 0.0, 0.33, 0.55, lung),
        (0, 0.5, 0.0, 0.33, 0.55, lung),
        (0, 0.0, 0.62, 0.1, 0.1, 0.9),  # the spine
        (0, draw(-0.3, -0.2), draw(0.28, 0.36), 0.12, 0.12, blood),  # a vein that looks like an aorta
        (4, draw(0.2, 0.3), draw(0.4, 0.46), draw(0.12, 0.15), draw(0.12, 0.15), blood),
        (3, draw(-0.2, -0.1), draw(-0.15, -0.05), draw(0.24, 0.3), draw(0.18, 0.24), blood * draw(0.85, 1)),
        (2, 0.15, 0.0, draw(0.27, 0.32), draw(0.24, 0.3), muscle),
        (1, 0.15, 0.0, draw(0.16, 0.2), draw(0.14, 0.18), blood),
    ]
    images, labels = torch.zeros(slices, SIZE, SIZE), torch.zeros(slices, SIZE, SIZE, dtype=torch.long)
    for image, label, height in zip(images, labels, torch.linspace(-0.8, 0.8, slices).tolist(), strict=True):
        for name, centre_x, centre_y, radius_x, radius_y, intensity in ellipses:
            shrink = size * (1 - height**2) ** 0.5 if name in (1, 2, 3) else 1  # the heart ends; the rest goes on
            inside = ((x - centre_x) / radius_x) ** 2 + ((y - centre_y) / radius_y) ** 2 < shrink**2
            image[inside], label[inside] = intensity, name
    images = F.avg_pool2d(images[:, None], 3, stride=1, padding=1)
    return images + 0.06 * torch.randn(images.shape, generator=generator), labels


def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turns, scales and moves each slice and its labels in a way of its own; changes the contrast of the image."""
    n = len(images)
    angle, scale, shift = torch.rand(n) - 0.5, 0.8 + 0.4 * torch.rand(n, 1, 1), 0.3 * (torch.rand(n, 2, 1) - 0.5)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    grid = F.affine_grid(torch.cat([turn * scale, shift], 2), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    labels = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0].long()
    gamma, contrast = 0.5 + torch.rand(2, n, 1, 1, 1)
    images = contrast * images.clamp(min=0) ** gamma
    return images + 0.06 * torch.randn_like(images), labels


def train(model: nn.Module, loss_of, data, *, steps: int, batch: int, rate: float, now_and_then=lambda: None) -> None:
    """One stage: draws slices, asks `loss_of` for their loss, takes a step."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)  # made once: Adam remembers the steps before
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(data[0]), (batch,))
        loss = loss_of(*(x[chosen] for x in data))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 25 == 0 or step == steps:
            now_and_then()


def stage_one(net: mmgl.UNet, images: Tensor, steps: int) -> None:
    """Global contrast trains the encoder: two augmentations of a slice are alike. Needs no labels."""
    contrast = mmgl.MultiScaleGlobalContrast(weights=(0.2, 0.2, 0.6))
    taps = dict.fromkeys(("pools.1", "pools.2", "up"), mmgl.GlobalHead)
    with mmgl.attach_heads(net.encoder, images[:2], taps, output=False) as tapped:

        def loss(x: Tensor, y: Tensor) -> Tensor:
            return contrast(tapped(torch.cat([augment(x, y)[0], augment(x, y)[0]]))[1])

        train(tapped, loss, (images, torch.zeros(len(images), SIZE, SIZE)), steps=steps, batch=16, rate=1e-3)


def stage_two(net: mmgl.UNet, images: Tensor, labels: Tensor, steps: int) -> None:
    """Local contrast trains the decoder too: points of one structure are alike."""
    contrast = mmgl.MultiScaleLocalSupCon(weights=(0.2, 0.2, 0.6))
    taps = {f"decoder.blocks.{i}": partial(mmgl.LocalHead, stride=2) for i in (0, 1, 2)}
    with mmgl.attach_heads(net, images[:2], taps, output=False) as tapped:

        def loss(x: Tensor, y: Tensor) -> Tensor:
            x, y = augment(x, y)
            return contrast(tapped(x)[1], y)

        train(tapped, loss, (images, labels), steps=steps, batch=8, rate=1e-3)


def stage_three(net: mmgl.UNet, images: Tensor, labels: Tensor, validation: tuple, steps: int) -> None:
    """Deep supervision trains all of it; the weights that were best on the validation patients stay."""
    supervision = mmgl.DeepSupervisionDice(weights=(0.2, 0.3, 0.5), cross_entropy=0.5)
    taps = {f"decoder.blocks.{i}": partial(mmgl.SegmentationHead, out_channels=5) for i in (0, 1)}
    seen: list[tuple[float, dict]] = []
    with mmgl.attach_heads(net, images[:2], taps) as tapped:

        def loss(x: Tensor, y: Tensor) -> Tensor:
            x, y = augment(x, y)
            output, coarser = tapped(x)
            return supervision([*coarser.values(), output], y)

        def validate() -> None:
            seen.append((dice(net, *validation).mean().item(), copy.deepcopy(net.state_dict())))

        train(tapped, loss, (images, labels), steps=steps, batch=8, rate=3e-3, now_and_then=validate)
    net.load_state_dict(max(seen, key=lambda pair: pair[0])[1])


@torch.no_grad()
def dice(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Dice of each structure, over all slices together."""
    found = net(images).argmax(1)
    return torch.stack([2 * ((found == c) & (labels == c)).sum() / ((found == c).sum() + (labels == c).sum()) for c in range(1, 5)])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, nargs=3, default=(150, 150, 200))
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    import time
    for seed in range(options.seeds):
        t = time.process_time()
        torch.manual_seed(seed)
        training = [patient(100 * seed + i) for i in range(24)]
        everyone = torch.cat([x for x, _ in training])
        val = tuple(map(torch.cat, zip(*[patient(100 * seed + i) for i in range(24, 27)])))
        test = tuple(map(torch.cat, zip(*[patient(100 * seed + i) for i in range(30, 40)])))
        init = mmgl.UNet(1, 5, channels=(8, 16, 32, 64))
        for steps1, steps2 in ((0, 0), (options.steps[0], 0), (0, options.steps[1]), options.steps[:2]):
            net = copy.deepcopy(init)
            torch.manual_seed(seed)
            if steps1: stage_one(net, everyone, steps1)
            if steps2: stage_two(net, *training[0], steps2)
            torch.manual_seed(seed + 1000)
            stage_three(net, *training[0], val, options.steps[2])
            d = dice(net, *test)
            print(seed, steps1, steps2, f"{d.mean():.3f}", [f"{v:.2f}" for v in d.tolist()], f"{time.process_time()-t:.0f} s", flush=True)

if __name__ == "__main__":
    main()
