"""What can be known before the first step: the plan of a run, and whether its data, parts and machine will do.

Everything that could end a run after hours is tried here in seconds: every file that it will open is opened, every
stage is built and stepped once, the accelerator is asked for, and the disk is measured.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import default_collate

from examples.mmwhs import files
from examples.mmwhs.data.description import Case
from examples.mmwhs.data.store import SliceDataset
from examples.mmwhs.messages import message
from examples.mmwhs.train.config import Compute
from examples.mmwhs.train.fit import loggers, quiet
from examples.mmwhs.train.setup import Setup
from examples.mmwhs.train.stage import StageModule, seed_of
from mmgl_losses import UNet

SHOWN = 8


def plan(setup: Setup, out: Path | None) -> Iterator[str]:
    """What a run is about to do, a line each."""
    settings, described, split = setup.settings, setup.dataset.description, setup.split
    patients = len(setup.dataset.patients)
    yield f"{described.name}: {len(setup.dataset.cases)} cases of {patients} patients in {setup.dataset.root}"
    names = ", ".join(f"{name} ({value})" for value, name in described.structures.items())
    yield f"structures: {names}"
    yield from setup.dataset.notes
    for part in ("train", "validation", "test", "labelled"):
        members = getattr(split, part)
        cases = len(setup.dataset.cases_of(members))
        shown = ", ".join(members[:SHOWN]) + (", ..." if len(members) > SHOWN else "")
        yield f"{part}: {len(members)} patients, {cases} cases ({shown})"
    if setup.store.patch:
        yield f"patches of volumes, {' x '.join(map(str, setup.store.patch))} voxels"
    else:
        yield f"slices of {setup.store.size} x {setup.store.size} pixels, evaluated in the {described.main_plane} plane"
    net = setup.network(None, None)
    yield f"network: {sum(p.numel() for p in net.parameters()):,} parameters"
    for number, stage in enumerate(settings.method.stages, start=1):
        schedule, labels = settings.schedule(stage), "labelled" if stage.labels else "all training"
        labels = "labelled and all training" if stage.teaching else labels
        planes = ", ".join(setup.planes(stage))
        yield (
            f"stage {number}, {stage.name} ({stage.kind}): {schedule.steps} steps of {schedule.batch_size}, "
            f"{planes}, {labels} patients"
        )
    yield f"scored on: {settings.scored}; device: {device(settings.compute)}" + (f"; results: {out}" if out else "")


def device(compute: Compute) -> torch.device:
    """Where a finished network is evaluated: the accelerator if the run may use one."""
    if compute.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("cpu")


def check(setups: Sequence[Setup], out: Path | None, *, say: Callable[[str], None], everything: bool = False) -> None:
    """Refuses what cannot come to an end, before it begins.

    Args:
        setups: What runs on one data set and one machine stand on.
        out: Where they will write.
        say: Takes a line about what can be done and may not be meant.
        everything: Whether to open the files that no run needs, too.

    Raises:
        ValueError: A file cannot be used, no labelled patient shows anything, a stage cannot be built or stepped, there
            is no such machine, or the disk is too full.
    """
    first, processes = setups[0], machine(setups[0].settings.compute)
    cases: dict[str, Case] = {}
    for setup in setups:
        shared(setup, processes)
        needed = seen(setup)
        cases |= {case.id: case for case in (setup.dataset.cases if everything else needed)}
    if out is not None:
        fits(first, out, cases.values())
    opens(first, cases.values())
    for line in dict.fromkeys(line for setup in {s.split: s for s in setups}.values() for line in unseen(setup)):
        say(line)
    built: set[str] = set()
    for setup in setups:
        for number, stage in enumerate(setup.settings.method.stages):
            if str(asdict(stage)) not in built:
                built.add(str(asdict(stage)))
                step(setup, number)


def machine(compute: Compute) -> int:
    """Asks Lightning for the machine; of how many processes a run is."""
    try:
        with quiet():
            trainer = lightning.Trainer(
                accelerator=compute.accelerator, devices=compute.devices, num_nodes=compute.num_nodes,
                precision=compute.precision,  # pyright: ignore[reportArgumentType]
                logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        asked = f"--accelerator {compute.accelerator} --devices {compute.devices} --precision {compute.precision}"
        got = repr(" ".join(str(error).split()))
        raise ValueError(message(f"a machine for {asked}", got, "See --accelerator cpu --devices 1.")) from error
    loggers(Path("none") / "curves" / "none", compute)  # writes nothing yet
    return trainer.num_devices * trainer.num_nodes


def shared(setup: Setup, processes: int) -> None:
    """Whether the batches of every stage can be shared out evenly over so many processes."""
    for stage in setup.settings.method.stages:
        if (size := setup.settings.schedule(stage).batch_size) % processes:
            expected = f"`batch_size` of stage {stage.name!r} to be a multiple of {processes} processes"
            raise ValueError(message(expected, size, "See --devices, --num-nodes and the scale's schedules."))


def seen(setup: Setup) -> list[Case]:
    """The cases that a run opens."""
    stages, split = setup.settings.method.stages, setup.split
    patients = {*split.validation, *getattr(split, setup.settings.scored)}
    for stage in stages:
        patients |= set(split.train if stage.unlabelled else setup.split_of(stage).labelled)
    return list(setup.dataset.cases_of(patients))


def opens(setup: Setup, cases: Iterable[Case]) -> None:
    """Opens every file, whose slices are then prepared; says of all that cannot be used what is wrong."""
    wrong = []
    for case in cases:
        try:
            setup.store.images(case, setup.store.main_plane)
        except files.FullError:
            raise  # of the next file, too, there is nothing else to say
        except ValueError as error:
            wrong.append(str(error))
    setup.store.contents.keep()
    if wrong:
        more = [f"... and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise ValueError("\n".join([*wrong[:SHOWN], *more]))


def unseen(setup: Setup) -> Iterator[str]:
    """A line for each part of the split of which no patient shows some structure, on slices as they are trained on.

    Raises:
        ValueError: The labelled patients show none at all.
    """
    names = dict(enumerate(setup.dataset.description.classes, start=1))
    means = {"labelled": "no network can learn it", "validation": "it has no part in choosing weights"}
    for part in dict.fromkeys(("labelled", "validation", setup.settings.scored)):
        cases = setup.dataset.cases_of(getattr(setup.split, part), labels=True)
        shown = {int(index) for case in cases for index in np.unique(setup.store.labels(case, setup.store.main_plane))}
        absent = [name for index, name in names.items() if index not in shown]
        if part == "labelled" and len(absent) == len(names):
            got = f"none in {', '.join(case.id for case in cases)}"
            cure = "Look at their label files, or leave these patients out."
            raise ValueError(message("labels of a structure in the labelled patients", got, cure))
        if absent:
            yield f"WARNING: no {part} patient shows {', '.join(absent)}: {means.get(part, 'it has no score')}."


def step(setup: Setup, number: int) -> None:
    """Builds a stage and takes a step of it on two slices, or one where its batches are of one, there and back."""
    stage, case = setup.settings.method.stages[number], setup.dataset.cases_of(setup.split.labelled, labels=True)[0]
    slices = SliceDataset(setup.store, [case], (setup.store.main_plane,), labels=True)
    full = np.flatnonzero(slices.shows().any(axis=1))
    chosen = [int(full[len(full) // 2]), int(full[-1])] if len(full) else [0, len(slices) - 1]
    batch = default_collate([slices[i] for i in chosen[: setup.settings.schedule(stage).batch_size]])
    try:
        _, module = stage_module(setup, number)
        torch.manual_seed(seed_of("check"))
        module.loss_on({"labelled": batch, "unlabelled": batch} if stage.teaching else batch).backward()
    except (ValueError, TypeError, RuntimeError, AttributeError, KeyError) as error:
        got = repr(" ".join(str(error).split()))
        raise ValueError(message(f"stage {stage.name!r} to be built and stepped", got)) from error


def stage_module(setup: Setup, number: int, before: dict[str, torch.Tensor] | None = None) -> tuple[UNet, StageModule]:
    """The network as a stage finds it, and the stage as it trains."""
    stage = setup.settings.method.stages[number]
    net, shape = setup.network(stage, before), setup.store.patch or (setup.store.size, setup.store.size)
    schedule, seed = setup.settings.schedule(stage), setup.settings.seed
    return net, StageModule(net, stage, schedule, classes=setup.classes, shape=shape, seed=seed, pose=setup.pose)


def fits(setup: Setup, out: Path, cases: Iterable[Case]) -> None:
    """Whether the disk has room for what is prepared of cases, all stages' weights, and eight more for states."""
    weights = sum(p.numel() for p in setup.network(None, None).parameters()) * 4
    prepared = sum(setup.store.bytes_of(case) for case in cases)
    needed = prepared + weights * (8 + len(setup.settings.method.stages))
    there = out
    while not there.exists():
        there = there.parent
    if (free := shutil.disk_usage(there).free) < needed:
        expected = f"{needed / 1e6:.1f} MB on the disk for {out}"
        raise ValueError(message(expected, f"{free / 1e6:.1f} MB", "Make room, or choose another place with --out."))
