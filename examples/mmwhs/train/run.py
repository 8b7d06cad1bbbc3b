"""A run: the stages of a method in order, in a folder that a killed run continues from."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch.utils.data import Subset

from examples.mmwhs import files
from examples.mmwhs.data.slices import evaluation_slices, training_slices
from examples.mmwhs.data.splits import Split
from examples.mmwhs.messages import message
from examples.mmwhs.study import report
from examples.mmwhs.train import config, methods
from examples.mmwhs.train.evaluate import evaluate
from examples.mmwhs.train.fit import StageData, fit, is_first
from examples.mmwhs.train.predict import export
from examples.mmwhs.train.setup import Setup
from examples.mmwhs.train.stage import StageModule, seed_of

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Says nothing."""


def run(
    settings: config.Run, out: Path, *, cache: Path | None = None, say: Say = silent, progress: bool = False
) -> dict[str, Any]:
    """Trains, evaluates and reports one run in the folder `out`, from wherever it was left.

    The folder holds ``config.yaml``, ``split.json``, a folder for each stage (``last.ckpt``, ``curves``,
    ``weights.pt``, and ``done.json``, which is written last), ``model.pt`` for `predict`, ``metrics.json``,
    ``overlay.npz``, ``curves.png``, ``overlay.png`` and ``report.html``.

    Args:
        settings: What to run.
        out: The folder, new or of the same run.
        cache: Where prepared slices are kept; ``out/cache`` by default.
        say: Takes a line about each thing done.
        progress: Whether to draw progress bars.

    Returns:
        What ``metrics.json`` holds; nothing on processes other than the first.

    Raises:
        ValueError: The folder belongs to another configuration or process, the data cannot be used, a file of the
            folder is damaged, the loss is not finite, or the disk is full.
    """
    setup = Setup.of(settings, cache or out / "cache")
    with files.room(out), claim(out, settings, setup.split):
        return _run(setup, out, say, progress)


def _run(setup: Setup, out: Path, say: Say, progress: bool) -> dict[str, Any]:
    settings = setup.settings
    facts: dict[str, Any] = {}
    weights: dict[str, Any] | None = None
    for number, stage in enumerate(settings.method.stages):
        folder = out / f"{number + 1}-{stage.name}"
        if not (folder / "done.json").is_file():
            train(setup, number, weights, folder, progress=progress)
        facts[stage.name] = files.read_json(folder / "done.json")
        weights = files.load(folder / "weights.pt")
        if is_first():
            say(f"{settings.method.title}: {described_stage(stage.name, facts[stage.name])}")
    if not is_first():
        return {}
    if not (out / "metrics.json").is_file():
        metrics, pictures = conclude(setup, weights, facts, out / "model.pt")
        files.replace(out / "overlay.npz", lambda aside: np.savez_compressed(aside, allow_pickle=False, **pictures))
        files.write_json(out / "metrics.json", metrics)
    if not (out / "report.html").is_file():
        report.write(out, [out])
    return files.read_json(out / "metrics.json")


def train(
    setup: Setup, number: int, before: Mapping[str, Any] | None, folder: Path, *, progress: bool = False,
    watch: Callback | None = None,
) -> None:  # fmt: skip
    """Trains one stage in its folder and, last of all, marks it as done.

    Args:
        setup: What the run stands on.
        number: Of the stage, from 0.
        before: Weights that the stage before left.
        folder: Of the stage.
        progress: Whether to draw a progress bar.
        watch: A callback more for Lightning.
    """
    settings, stage = setup.settings, setup.settings.method.stages[number]
    net = setup.network(stage, before)
    split = setup.split_of(stage)
    training = training_slices(setup.store, split, stage.name, setup.planes(stage), labels=stage.labels)
    validation = None
    if stage.kind == "finetune":
        validation = evaluation_slices(setup.store, setup.split, "validation")
        few = np.linspace(0, len(validation) - 1, min(len(validation), settings.scale.validation_slices))
        validation = Subset(validation, np.unique(few.round().astype(int)).tolist())
    schedule = settings.schedule(stage)
    module = StageModule(net, stage, schedule, classes=setup.classes, size=setup.store.size, seed=settings.seed)
    order = seed_of(settings.seed, stage.name, "order")
    data = StageData(training, validation, schedule, seed=order, workers=settings.compute.workers)

    def finish(facts: dict[str, Any]) -> None:
        weights = {key: value.cpu() for key, value in net.state_dict().items()}
        if lost := [key for key, value in weights.items() if not value.isfinite().all()]:
            cure = "Lower `learning_rate` in its schedule."
            raise ValueError(message(f"finite weights after stage {stage.name!r}", f"NaN in {lost[0]}", cure))
        files.save(folder / "weights.pt", weights)
        seen = {"slices": len(training), "patients": len({case.patient for case in training.cases})}
        files.write_json(folder / "done.json", {**facts, **seen})

    fit(module, data, folder, settings.compute, finish=finish, progress=progress, watch=watch)


def conclude(
    setup: Setup, weights: Mapping[str, Any] | None, facts: Mapping[str, Any], model: Path | None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores the final weights on the patients that the settings name.

    Args:
        setup: What the run stands on.
        weights: Of the last stage.
        facts: Of each stage.
        model: Where to write the file that `predict` takes, or nowhere.

    Returns:
        What ``metrics.json`` holds, and the arrays of an overlay.
    """
    settings, described = setup.settings, setup.dataset.description
    net = setup.network(None, weights)
    if model is not None:
        export(model, net, setup.architecture, setup.store)
    metrics, pictures = evaluate(net, setup.store, setup.split, settings.scored, device=device(settings.compute))
    about = {
        "method": settings.method.title,
        "data": described.name,
        "main_plane": described.main_plane,
        "note": described.note,
        "structures": list(described.classes),
        "labelled": list(setup.split.labelled),
        "seed": settings.seed,
        "scored": settings.scored,
        "parameters": sum(p.numel() for p in net.parameters()),
        "stages": dict(facts),
    }
    return {**about, **metrics}, pictures


def described_stage(name: str, facts: dict[str, Any]) -> str:
    """A line about a finished stage."""
    line = f"{name}: {facts['steps']} steps on {facts['slices']} slices of {facts['patients']} patients"
    if facts.get("validation_dice") is not None:
        line += f", validation Dice {facts['validation_dice']:.3f} at step {facts['best_step']}"
    return f"{line}, {facts['seconds']:.0f} s"


def device(compute: config.Compute) -> torch.device:
    """Where the finished network is evaluated: the accelerator if the run may use one."""
    if compute.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


@contextmanager
def claim(out: Path, settings: config.Run, split: Split) -> Iterator[None]:
    """Holds a folder that is new, and then gets configuration and split, or of the same run.

    The first process does; where all start at once (torchrun), the others wait until the folder is theirs to write to.

    Raises:
        ValueError: The folder is of another run, or holds something else, or another process is at work in it; the
            message names the differences.
    """
    if not is_first():
        while not (out / "split.json").is_file():
            time.sleep(0.1)
        yield
        return
    cure = "Choose another folder with --out, or remove this one."
    if out.exists() and not out.is_dir():
        raise ValueError(message(f"{out} to be a folder", "a file", cure))
    strange = out.is_dir() and not (out / "config.yaml").is_file() and not all(map(files.is_ours, out.iterdir()))
    if strange:
        raise ValueError(message(f"{out} to be new or the folder of a run", "a folder with other files", cure))
    with files.alone(out):
        _same_run(out, settings, split, cure)
        if not (out / "config.yaml").is_file():
            files.write_text(out / "config.yaml", config.to_yaml(settings))
        files.replace(out / "split.json", split.save)
        yield


def _same_run(out: Path, settings: config.Run, split: Split, cure: str) -> None:
    mine = yaml.safe_load(config.to_yaml(settings))
    del mine["compute"]
    path = out / "config.yaml"
    if path.is_file():
        theirs = methods.read(path)
        if isinstance(theirs, dict):
            theirs.pop("compute", None)
        if differing := list(differences(theirs, mine)):
            raise ValueError(message(f"{out} to be a folder of this run", "; ".join(differing[:4]), cure))
        if (out / "split.json").is_file() and Split.load(out / "split.json") != split:
            got = "a split of other patients: the data changed"
            raise ValueError(message(f"{out} to be a folder of this run", got, cure))


def differences(theirs: Any, mine: Any, where: str = "") -> Iterator[str]:
    """Every setting that differs: ``method.title is 'a' there and 'b' here``."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in {**theirs, **mine}:
            yield from differences(theirs.get(key), mine.get(key), f"{where}.{key}" if where else str(key))
    elif isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        for index, (one, other) in enumerate(zip(theirs, mine, strict=True)):
            yield from differences(one, other, f"{where}.{index}")
    elif theirs != mine:
        yield f"{where} is {theirs!r} there and {mine!r} here"
