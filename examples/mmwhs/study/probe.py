"""What the stages of a run left in the network: a linear probe of every level, and a look at its features."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from examples.mmwhs import files
from examples.mmwhs.data.store import SliceDataset, evaluation_slices, training_slices
from examples.mmwhs.messages import message
from examples.mmwhs.study.figures import draw_features, draw_probe
from examples.mmwhs.train import config, methods, plain
from examples.mmwhs.train.evaluate import scores
from examples.mmwhs.train.run import same_run
from examples.mmwhs.train.setup import Setup
from mmgl_losses import FeatureTaps, UNet
from mmgl_losses.sampling import resample

FITTED, SCORED, SHOWN = 500, 64, 150  # points of each class to fit on, slices to score on, points of each class drawn


def probe(run: Path) -> dict[str, dict[str, float | None]]:
    """Probes the network before the first stage of a run and after each.

    Args:
        run: The folder of a finished run; ``probe.json``, ``probe.png`` and ``features.png`` are written there.

    Returns:
        Stage -> level -> mean Dice of the structures, of points at the level's resolution, on validation slices.

    Raises:
        ValueError: The folder is not of a finished run.
    """
    if not (run / "metrics.json").is_file():
        raise ValueError(message(f"{run} to be the folder of a finished run", "no metrics.json in it"))
    files.own(run, "run")
    content = methods.read(run / "config.yaml")
    setup = Setup.of(plain.parse(config.Run, content, where=str(run)), run / "cache")
    same_run(run, setup)
    if setup.store.patch:
        raise ValueError(message(f"{run} to be a run on slices", "one on volumes"))
    training, validation = slices_of(setup)
    found: dict[str, dict[str, float | None]] = {}
    pictures: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    stages = [stage.name for stage in setup.settings.method.stages]
    for number, name in enumerate(["random", *stages]):
        weights = files.load(run / f"{number}-{name}" / "weights.pt") if number else None
        net = setup.network(None, weights).eval()
        scored = features(net, validation)
        found[name] = levels(features(net, training), scored, setup.classes)
        _, there = levels_of(net)
        pictures[name] = {level: axes_of(*scored[level], setup.classes) for level in there}
    files.write_json(run / "probe.json", found)
    draw_probe(run / "probe.png", {f"after {stage}": row for stage, row in found.items()}, "Dice of a linear probe")
    draw_features(run / "features.png", pictures, setup.dataset.description.classes)
    return found


def probe_weights(
    setup: Setup, weights: Mapping[str, Tensor] | None, *, device: torch.device
) -> dict[str, float | None]:
    """Level -> mean Dice of the structures of a linear probe, as in `probe`, of a network with some weights.

    Args:
        setup: What the run stands on.
        weights: Of the network; None is how it starts.
        device: Where the features are made.
    """
    training, validation = slices_of(setup)
    net = setup.network(None, weights).eval().to(device)
    return levels(features(net, training), features(net, validation), setup.classes)


def slices_of(setup: Setup) -> tuple[SliceDataset, SliceDataset]:
    """Slices to fit on, of the labelled patients, and to score on, of those for validation."""
    plane = (setup.dataset.description.main_plane,)
    training = training_slices(setup.store, setup.split, "probe", plane, labels=True, empty=False)
    return training, evaluation_slices(setup.store, setup.split, "validation")


def levels_of(net: UNet) -> tuple[list[str], list[str]]:
    """Every level of a network, from the image down and up again; and those that are drawn, coarse to fine."""
    count = len(net.encoder.blocks)
    down, up = ([f"{way}.blocks.{i}" for i in range(count)] for way in ("encoder", "decoder"))
    drawn = dict.fromkeys(["encoder.bottleneck", up[(count - 1) // 2], up[-1]])
    return [*down, "encoder.bottleneck", *up], list(drawn)


def levels(
    fitted: Mapping[str, tuple[Tensor, Tensor]], scored: Mapping[str, tuple[Tensor, Tensor]], classes: int
) -> dict[str, float | None]:
    """Level -> mean Dice of a probe fitted on some features and scored on others."""
    return {level: score(fit(*fitted[level], classes), *scored[level], classes) for level in fitted}


@torch.no_grad()
def features(net: UNet, slices: SliceDataset) -> dict[str, tuple[Tensor, Tensor]]:
    """Level -> features (points, D) and labels (points,) of up to `SCORED` slices, evenly chosen."""
    chosen = np.unique(np.linspace(0, len(slices) - 1, min(len(slices), SCORED)).round().astype(int)).tolist()
    every, _ = levels_of(net)
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {level: [] for level in every}
    device = next(net.parameters()).device
    for batch in DataLoader(torch.utils.data.Subset(slices, chosen), batch_size=16):
        with FeatureTaps(net, every) as taps:
            net(batch["image"].to(device))
            for level, values in taps.read().items():
                labels = resample(batch["label"], values.shape[2:])
                parts[level].append((values.movedim(1, -1).flatten(0, -2).cpu(), labels.flatten()))
    return {level: (torch.cat([f for f, _ in each]), torch.cat([y for _, y in each])) for level, each in parts.items()}


def some(labels: Tensor, classes: int, most: int) -> Tensor:
    """Indices of up to `most` points of each class, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    chosen = []
    for index in range(classes):
        there = (labels == index).nonzero()[:, 0]
        chosen.append(there[torch.randperm(len(there), generator=generator)[:most]])
    return torch.cat(chosen)


def fit(values: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Multinomial logistic regression on standardised features: (D, C) weights and (C,) offsets.

    Fitted on `FITTED` points of each class; offsets are then those of the classes' real shares.
    """
    chosen = some(labels, classes, FITTED)
    x, y = values[chosen].double(), labels[chosen]
    mean, sd = x.mean(0), x.std(0).clamp(min=1e-6)
    weight = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    offset = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, offset], max_iter=100, line_search_fn="strong_wolfe")
    standard = (x - mean) / sd

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(standard @ weight + offset, y) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        share = torch.bincount(labels, minlength=classes) / torch.bincount(y, minlength=classes).clamp(min=1)
        plain = weight / sd[:, None]
        return plain, offset - mean @ plain + share.clamp(min=1e-12).log()


def score(model: tuple[Tensor, Tensor], values: Tensor, labels: Tensor, classes: int) -> float | None:
    """Mean Dice of the structures over all points."""
    predicted = (values.double() @ model[0] + model[1]).argmax(1)
    matrix = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    return scores(matrix)["dice"]["mean"]


def axes_of(values: Tensor, labels: Tensor, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit features of some points on their two principal axes (n, 2), and their labels (n,)."""
    chosen = some(labels, classes, SHOWN)
    x = nn.functional.normalize(values[chosen].double(), dim=1)
    x = x - x.mean(0)
    _, _, axes = torch.linalg.svd(x, full_matrices=False)
    return (x @ axes[:2].T).numpy(), labels[chosen].numpy()
