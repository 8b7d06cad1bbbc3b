"""Train a U-Net in the three stages of MMGL, beside the same network from random initialisation.

    pip install mmgl-losses matplotlib
    python three_stages.py  # two or three minutes on a CPU: prints Dice, saves three_stages.png

Slices of made-up chests, four structures, 24 training patients, one labelled. Both networks are fine-tuned alike.
On images as simple as these they end level; what it is worth on real hearts is in docs/reproduction.md.
"""

import argparse
import copy
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from torch import Tensor, nn

import mmgl_losses as mmgl

SIZE = 32  # of a slice, along both axes


def patient(number: int, slices: int = 8) -> tuple[Tensor, Tensor]:
    """The slices of one chest: images (slices, 1, SIZE, SIZE) and labels (slices, SIZE, SIZE)."""
    generator = torch.Generator().manual_seed(number)
    u = lambda low, high: low + (high - low) * torch.rand((), generator=generator).item()  # noqa: E731
    y, x = torch.meshgrid(*[torch.linspace(-0.7, 0.7, SIZE)] * 2, indexing="ij")
    y, x, size = y + u(-0.1, 0.1), x + u(-0.1, 0.1), u(0.85, 1.15)
    tissue, lung, muscle, blood = u(0.35, 0.6), u(0.05, 0.2), u(0.4, 0.6), u(0.6, 0.95)
    ellipses = [  # label (0 is background), centre, radii, intensity: each painted over the last
        (0, 0.0, 0.0, 0.92, 0.75, tissue),
        *[(0, side, 0.0, 0.33, 0.55, lung) for side in (-0.5, 0.5)],
        (4, u(0.2, 0.3), u(0.4, 0.46), u(0.12, 0.15), u(0.12, 0.15), blood),
        (3, u(-0.2, -0.1), u(-0.15, -0.05), u(0.24, 0.3), u(0.18, 0.24), blood * u(0.85, 1)),
        (2, 0.15, 0.0, u(0.27, 0.32), u(0.24, 0.3), muscle),
        (1, 0.15, 0.0, u(0.16, 0.2), u(0.14, 0.18), blood),
    ]
    (images, labels), levels = torch.zeros(2, slices, SIZE, SIZE), torch.linspace(-0.9, 0.2, slices)
    for image, label, level in zip(images, labels, levels.tolist(), strict=True):
        for name, across, down, width, height, intensity in ellipses:
            shrink = size * (1 - level**2) ** 0.5 if name in (1, 2, 3) else 1  # the heart ends
            inside = ((x - across) / width) ** 2 + ((y - down) / height) ** 2 < shrink**2
            image[inside], label[inside] = intensity, name
    noise = 0.06 * torch.randn(slices, 1, SIZE, SIZE, generator=generator)
    return F.avg_pool2d(images[:, None], 3, stride=1, padding=1) + noise, labels.long()


def augment(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turns, scales and moves each slice with its labels, and changes its contrast."""
    angle, scale = torch.rand(n := len(images)) / 2 - 0.25, 0.9 + torch.rand(n, 1, 1) / 5
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    move = torch.cat([turn * scale, 0.15 * (torch.rand(n, 2, 1) - 0.5)], 2)
    grid = F.affine_grid(move, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, align_corners=False)
    labels = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)
    gamma, contrast = 0.75 + torch.rand(2, n, 1, 1, 1) / 2
    noise = 0.06 * torch.randn_like(images)
    return contrast * images.clamp(min=0) ** gamma + noise, labels[:, 0].long()


def train(model: nn.Module, loss_of, data, *, views: int, steps: int, batch: int, rate: float, now_and_then=None):
    """One stage: draws slices, augments them, asks `loss_of` for their loss, takes a step."""
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)  # made once: Adam remembers the steps before
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for step in range(1, steps + 1):
        chosen = torch.randint(len(data[0]), (batch,))
        loss = loss_of(*[augment(*(x[chosen] for x in data)) for _ in range(views)])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if now_and_then is not None and (step % 25 == 0 or step == steps):
            now_and_then()


def pretrain(net: mmgl.UNet, everyone: Tensor, images: Tensor, labels: Tensor, steps: list[int]) -> None:
    """Stages one and two: the encoder on all slices, without labels; then all of it on the labelled ones."""
    contrast = mmgl.MultiScaleGlobalContrast(weights=(0.2, 0.2, 0.6))
    taps = {name: mmgl.GlobalHead for name in ("pools.1", "pools.2", "up")}
    data = everyone, torch.zeros(len(everyone), SIZE, SIZE)  # in the place of labels
    with mmgl.attach_heads(net.encoder, images[:2], taps, output=False) as tapped:
        loss = lambda first, second: contrast(tapped(torch.cat([first[0], second[0]]))[1])  # noqa: E731
        train(tapped, loss, data, views=2, steps=steps[0], batch=16, rate=3e-3)
    local = mmgl.MultiScaleLocalSupCon(weights=(0.2, 0.2, 0.6))
    taps = {f"decoder.blocks.{i}": partial(mmgl.LocalHead, stride=2) for i in (0, 1, 2)}
    with mmgl.attach_heads(net, images[:2], taps, output=False) as tapped:
        loss = lambda slices: local(tapped(slices[0])[1], slices[1])  # noqa: E731
        train(tapped, loss, (images, labels), views=1, steps=steps[1], batch=8, rate=1e-3)


def finetune(net: mmgl.UNet, images: Tensor, labels: Tensor, validation: tuple, steps: int) -> None:
    """Stage three: deep supervision; the weights that were best on the validation patients stay."""
    supervision = mmgl.DeepSupervisionDice(weights=(0.2, 0.3, 0.5), cross_entropy=0.5)
    taps = {f"decoder.blocks.{i}": partial(mmgl.SegmentationHead, out_channels=5) for i in (0, 1)}
    seen: list[tuple[float, dict]] = []
    validate = lambda: seen.append((dice(net, *validation).mean().item(), copy.deepcopy(net.state_dict())))  # noqa: E731
    with mmgl.attach_heads(net, images[:2], taps) as tapped:

        def loss(slices: tuple[Tensor, Tensor]) -> Tensor:
            output, coarser = tapped(slices[0])
            return supervision([*coarser.values(), output], slices[1])

        train(tapped, loss, (images, labels), views=1, steps=steps, batch=8, rate=5e-3, now_and_then=validate)
    net.load_state_dict(max(seen, key=lambda pair: pair[0])[1])


@torch.no_grad()
def dice(net: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Dice of each structure, over all slices together."""
    predicted = net(images).argmax(1)
    found = [(predicted == c, labels == c) for c in range(1, 5)]
    return torch.stack([2 * (a & b).sum() / (a.sum() + b.sum()) for a, b in found])


def join(patients: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The slices of several patients."""
    return torch.cat([images for images, _ in patients]), torch.cat([labels for _, labels in patients])


def picture(columns: dict[str, Tensor]) -> None:
    """Saves some slices, one below the other: the image, the truth, and what each network makes of it."""
    figure, axes = plt.subplots(1, len(columns), figsize=(7, 7.2), layout="constrained")
    for axis, (name, column) in zip(axes, columns.items(), strict=True):
        axis.imshow(torch.cat(list(column)).numpy(), cmap="gray" if name == "image" else "viridis")
        axis.set(title=name, xticks=[], yticks=[])
    figure.savefig("three_stages.png", dpi=120)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many times, with other patients each time")
    parser.add_argument("--steps", type=int, nargs=3, default=[150, 100, 300], help="of the three stages")
    options = parser.parse_args()
    for seed in range(options.seeds):
        patients = [patient(100 * seed + number) for number in range(38)]
        everyone, labelled, validation, test = map(join, (patients[:24], patients[:1], patients[24:28], patients[28:]))
        torch.manual_seed(seed)
        net = mmgl.UNet(1, 5, channels=(8, 16, 32, 64), norm="batch")
        nets = {"random start": copy.deepcopy(net), "three stages": net}
        pretrain(net, everyone[0], *labelled, options.steps)
        columns = {"image": test[0][3::24, 0], "truth": test[1][3::24]}
        for name, net in nets.items():
            torch.manual_seed(seed)  # the same batches and augmentations for both
            finetune(net, *labelled, validation, options.steps[2])
            scores = [round(score, 3) for score in dice(net, *test).tolist()]
            print(f"seed {seed}, {name}: Dice {sum(scores) / 4:.3f}; LV, MYO, RV, aorta: {scores}", flush=True)
            columns[name] = net(test[0][3::24]).argmax(1)
        if seed == 0:
            picture(columns)
