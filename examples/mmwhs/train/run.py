"""A run: the stages of a method in order, in a folder that a killed run continues from."""

import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console
from torch.utils.data import Subset

from examples.mmwhs import files
from examples.mmwhs.data.store import SliceDataset, evaluation_slices, training_slices
from examples.mmwhs.messages import message
from examples.mmwhs.train import config, methods, plain
from examples.mmwhs.train.check import check, device, plan, stage_module
from examples.mmwhs.train.evaluate import evaluate
from examples.mmwhs.train.fit import StageData, fit, is_first
from examples.mmwhs.train.predict import export
from examples.mmwhs.train.setup import Setup
from examples.mmwhs.train.stage import seed_of
from examples.mmwhs.train.watch import Watch, dice_left

Say = Callable[[str], None]


def silent(_: str) -> None:
    """Says nothing."""


def run(
    settings: config.Run,
    out: Path,
    *,
    cache: Path | None = None,
    say: Say = silent,
    console: Console | None = None,
    shared: Mapping[str, Path] | None = None,
    setup: Setup | None = None,
) -> dict[str, Any]:
    """Trains and evaluates one run in the folder `out`, from wherever it was left.

    The folder holds ``config.yaml``, ``split.json``, ``seen.json`` (digests of the data), ``log.txt``, a folder for
    each stage (``last.ckpt``, ``curves``, ``weights.pt``, and ``done.json``, which is written last), ``model.pt`` for
    `predict`, ``metrics.json`` and ``overlay.npz``.

    Args:
        settings: What to run.
        out: The folder, new or of the same run.
        cache: Where prepared slices are kept; ``out/cache`` by default.
        say: Takes a line about each thing done.
        console: Where to draw progress bars.
        shared: Folders of stages that other runs have finished, by the digests of `Setup.keys`: they are copied.
        setup: What the settings lead to, where that is built and checked already.

    Returns:
        What ``metrics.json`` holds; nothing on processes other than the first.

    Raises:
        ValueError: The folder belongs to another configuration, other data or another process, the data or the machine
            cannot be used, a file of the folder is damaged, the loss is not finite, or the disk is full.
    """
    with files.room(out), claim(out):
        unchecked = setup is None
        setup = setup or Setup.of(settings, cache or out / "cache")
        same_run(out, setup)
        said = logged(say, out / "log.txt") if is_first() else silent
        if is_first() and not (out / "metrics.json").is_file():
            for line in plan(setup, out):
                said(line)
            if unchecked:
                check([setup], out, say=said)
        return _run(setup, out, said, console, shared or {})


def logged(say: Say, path: Path) -> Say:
    """Says a line and writes it down with the time."""

    def both(line: str) -> None:
        say(line)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    return both


def folders_of(setup: Setup, out: Path) -> dict[str, Path]:
    """The folder of every stage of a run, by the digest of all that decides what the stage leaves."""
    stages = enumerate(setup.settings.method.stages, start=1)
    return dict(zip(setup.keys(), (out / f"{number}-{stage.name}" for number, stage in stages), strict=True))


def _run(setup: Setup, out: Path, say: Say, console: Console | None, shared: Mapping[str, Path]) -> dict[str, Any]:
    settings, stages = setup.settings, setup.settings.method.stages
    folders = folders_of(setup, out)
    facts: dict[str, Any] = {}
    weights: dict[str, Any] | None = None
    before: Path | None = None
    for number, (stage, (key, folder)) in enumerate(zip(stages, folders.items(), strict=True)):
        if key in shared and not folder.exists():
            if is_first():
                say(f"{settings.method.title}, {stage.name}: as in {shared[key].parent.name}")
                files.replace(folder, partial(shutil.copytree, shared[key]))
            while not (folder / "done.json").is_file():  # the other processes wait for the first
                time.sleep(0.1)
        if not (folder / "done.json").is_file():
            name = f"{settings.method.title}, {stage.name}"
            watch = watch_of(setup, number, before, name=name, say=say, console=console)
            train(setup, number, weights, folder, watch=watch)
        facts[stage.name] = files.read_json(folder / "done.json")
        weights, before = files.load(folder / "weights.pt"), folder
        if is_first():
            say(f"{settings.method.title}: {described_stage(stage.name, facts[stage.name], setup.store.unit)}")
    if not is_first():
        return {}
    if not (out / "metrics.json").is_file():
        metrics, pictures = conclude(setup, weights, facts, out / "model.pt")
        files.replace(out / "overlay.npz", lambda aside: np.savez_compressed(aside, allow_pickle=False, **pictures))
        files.write_json(out / "metrics.json", metrics)
    return files.read_json(out / "metrics.json")


def watch_of(
    setup: Setup, number: int, before: Path | None, *, name: str, say: Say, console: Console | None = None
) -> Watch:
    """What watches a stage.

    Args:
        setup: What the run stands on.
        number: Of the stage, from 0.
        before: The folder of the stage before it, whose validation says what this one begins with.
        name: Of the stage, in words.
        say: Takes lines.
        console: Where to draw a bar.
    """
    stage, structures = setup.settings.method.stages[number], setup.dataset.description.structures
    began = dice_left(before, structures) if before is not None and stage.inherits is None else {}
    steps = setup.settings.schedule(stage).steps
    return Watch(name, steps, say=say, console=console, structures=structures, began=began)


def train(
    setup: Setup, number: int, before: dict[str, Any] | None, folder: Path, *, watch: Watch | None = None
) -> None:
    """Trains one stage in its folder and, last of all, marks it as done.

    Args:
        setup: What the run stands on.
        number: Of the stage, from 0.
        before: Weights that the stage before left.
        folder: Of the stage.
        watch: Says how far it is.
    """
    settings, stage = setup.settings, setup.settings.method.stages[number]
    split = setup.split_of(stage)
    training = {
        name: training_slices(setup.store, split, stage.name, setup.planes(stage), labels=name == "labelled")
        for name, wanted in (("labelled", stage.labels), ("unlabelled", stage.unlabelled))
        if wanted
    }
    validation = None
    if stage.output:
        validation = evaluation_slices(setup.store, setup.split, "validation")
        few = np.linspace(0, len(validation) - 1, min(len(validation), settings.scale.validation_slices))
        validation = Subset(validation, np.unique(few.round().astype(int)).tolist())
    schedule = settings.schedule(stage)
    net, module = stage_module(setup, number, before)
    order = seed_of(settings.seed, stage.name, "order")
    data = StageData(training, validation, schedule, seed=order, workers=settings.compute.workers)

    def finish(facts: dict[str, Any]) -> None:
        weights = module.left(net)
        if lost := [key for key, value in weights.items() if not value.isfinite().all()]:
            cure = "Lower `learning_rate` in its schedule."
            raise ValueError(message(f"finite weights after stage {stage.name!r}", f"NaN in {lost[0]}", cure))
        files.save(folder / "weights.pt", weights)
        fell = {"fell": watch.fell} if watch is not None and watch.fell else {}
        files.write_json(folder / "done.json", {**facts, **fell, **_seen(training)})

    best = settings.chooses(stage)
    fit(module, data, folder, settings.compute, finish=finish, watch=watch, best=best)


def _seen(training: Mapping[str, SliceDataset]) -> dict[str, Any]:
    """How many slices of how many patients a stage has seen; with and without labels, where it sees both."""
    seen = {
        name: {"slices": len(slices), "patients": len({case.patient for case in slices.cases})}
        for name, slices in training.items()
    }
    first, *more = seen.values()
    return {**first, "unlabelled": more[0]} if more else first


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
        "structures": described.structures,
        "labelled": list(setup.split.labelled),
        "seed": settings.seed,
        "scored": settings.scored,
        "parameters": sum(p.numel() for p in net.parameters()),
        "made": made(),
        "stages": dict(facts),
    }
    return {**about, **metrics}, pictures


def described_stage(name: str, facts: dict[str, Any], unit: str) -> str:
    """A line about a finished stage; `unit` is what its batches are of, in words."""
    line = f"{name}: {facts['steps']} steps on {facts['slices']} {unit} of {facts['patients']} patients"
    if "unlabelled" in facts:
        line += f" with labels and {facts['unlabelled']['slices']} of {facts['unlabelled']['patients']} without"
    if facts.get("validation_dice") is not None:
        line += f", validation Dice {facts['validation_dice']:.3f} at step {facts['best_step']}"
    return f"{line}, {facts['seconds']:.0f} s"


def made() -> dict[str, Any]:
    """When and on what: date, machine, and versions of what decides numbers."""
    names = ("mmgl-losses", "torch", "lightning", "kornia", "monai")
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    cpu = f"CPU ({platform.machine()}), {torch.get_num_threads()} thread(s) a run"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": cuda or cpu,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in names}},
    }


@contextmanager
def claim(out: Path) -> Iterator[None]:
    """Holds the folder of a run. The first process does; where all start at once (torchrun), the others follow."""
    if is_first():
        with files.alone(out, "run"):
            yield
        return
    while not (out / "seen.json").is_file():
        time.sleep(0.1)
    yield


def same_run(out: Path, setup: Setup) -> None:
    """Writes down in a new folder what is run and what it sees; refuses the folder of another run or of other data.

    Raises:
        ValueError: The message names the differences.
    """
    mine = yaml.safe_load(plain.to_yaml(setup.settings))
    found = {
        "config.yaml": _read(methods.read, out / "config.yaml"),
        "seen.json": _read(files.read_json, out / "seen.json"),
    }
    for name, said in (("config.yaml", mine), ("seen.json", setup.seen())):
        theirs = found[name]
        if isinstance(theirs, dict):
            ours = {key: value for key, value in said.items() if key != "compute"}
            theirs = {key: value for key, value in theirs.items() if key != "compute"}
            if differing := list(differences(theirs, ours)):
                what = "; ".join(differing[:4]) + ("; ..." if len(differing) > 4 else "")
                what = f"other contents: {what}" if name == "seen.json" else what
                cure = "Choose another folder with --out, or remove this one."
                raise ValueError(message(f"{out} to be a folder of this run", what, cure))
    if is_first():
        if found["config.yaml"] is None:
            files.write_text(out / "config.yaml", plain.to_yaml(setup.settings))
        files.replace(out / "split.json", setup.split.save)
        if found["seen.json"] is None:
            files.write_json(out / "seen.json", setup.seen())


def _read(reader: Callable[[Path], Any], path: Path) -> Any:
    return reader(path) if path.is_file() else None


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
