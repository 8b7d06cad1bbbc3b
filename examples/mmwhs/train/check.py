"""What can be known before the first step: the plan of a run, and whether its data, parts and machine will do.

Everything that could end a run after hours is tried here in seconds: every file that it will open is opened, every
stage is built and stepped once, the accelerator is asked for, and the disk is measured.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import default_collate

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


def check(setup: Setup, out: Path | None, *, everything: bool = False) -> None:
    """Refuses what cannot come to an end, before it begins.

    Args:
        setup: What the run stands on.
        out: Where it will write.
        everything: Whether to open the files that the run does not need, too.

    Raises:
        ValueError: A file cannot be used, a stage cannot be built or stepped, there is no such machine, or the disk is
            too full.
    """
    machine(setup.settings.compute)
    cases = setup.dataset.cases if everything else seen(setup)
    opens(setup, cases)
    steps(setup)
    if out is not None:
        fits(setup, out)


def machine(compute: Compute) -> None:
    """Asks Lightning for the machine."""
    try:
        with quiet():
            lightning.Trainer(
                accelerator=compute.accelerator, devices=compute.devices, num_nodes=compute.num_nodes,
                precision=compute.precision,  # pyright: ignore[reportArgumentType]
                logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
    except (MisconfigurationException, RuntimeError, TypeError, ValueError) as error:
        asked = f"--accelerator {compute.accelerator} --devices {compute.devices} --precision {compute.precision}"
        got = repr(" ".join(str(error).split()))
        raise ValueError(message(f"a machine for {asked}", got, "See --accelerator cpu --devices 1.")) from error
    loggers(Path("none") / "curves" / "none", compute)  # writes nothing yet


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
        except ValueError as error:
            wrong.append(str(error))
    setup.store.contents.keep()
    if wrong:
        more = [f"... and {len(wrong) - SHOWN} more"] if len(wrong) > SHOWN else []
        raise ValueError("\n".join([*wrong[:SHOWN], *more]))


def steps(setup: Setup, wanted: Callable[[int], bool] = lambda number: True) -> None:
    """Builds every stage and takes a step of it on two slices, forward and backward."""
    case = setup.dataset.cases_of(setup.split.labelled, labels=True)[0]
    slices = SliceDataset(setup.store, [case], (setup.store.main_plane,), labels=True)
    assert slices.labels is not None
    full = np.flatnonzero(slices.labels.reshape(len(slices), -1).any(axis=1))
    chosen = [int(full[len(full) // 2]), int(full[-1])] if len(full) else [0, len(slices) - 1]
    batch = default_collate([slices[i] for i in chosen])
    for number, stage in enumerate(setup.settings.method.stages):
        if not wanted(number):
            continue
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


def fits(setup: Setup, out: Path) -> None:
    """Whether the disk has room for the states of a stage, three copies of weights each, and the weights of all."""
    weights = sum(p.numel() for p in setup.network(None, None).parameters()) * 4
    needed = weights * (8 + len(setup.settings.method.stages))
    there = out
    while not there.exists():
        there = there.parent
    if (free := shutil.disk_usage(there).free) < needed:
        expected = f"{needed / 1e6:.0f} MB on the disk for {out}"
        raise ValueError(message(expected, f"{free / 1e6:.0f} MB", "Make room, or choose another place with --out."))
