"""What a worker process of a table does: one task at a time, under a lock that dies with it."""

import gc
import os
import platform
import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing import connection, parent_process
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock, Timeout
from lightning.pytorch.callbacks import Callback

from examples.mmwhs import files
from examples.mmwhs.study.plan import Folders, Job, Task
from examples.mmwhs.study.probe import probe_weights
from examples.mmwhs.train.fit import curves
from examples.mmwhs.train.run import conclude, device, train
from examples.mmwhs.train.setup import FORMAT, Setup


class _Worker:
    """What a process knows of itself: its place among the workers, and where it says how far it is."""

    def __init__(self, slot: int, progress: Any) -> None:
        self.slot, self.progress = slot, progress

    def at(self, fraction: float) -> None:
        self.progress[self.slot] = fraction


class Watch(Callback):
    """Says after every step how much of the stage is done."""

    def __init__(self, worker: _Worker, steps: int) -> None:
        self.worker, self.steps = worker, steps

    def on_train_batch_end(self, trainer: Any, *args: Any, **options: Any) -> None:
        """Says it."""
        self.worker.at(trainer.global_step / self.steps)


_here: list[_Worker] = []  # of a worker process; empty elsewhere


def start(slot: int, pids: Any, progress: Any, threads: int) -> None:
    """Makes this process worker number `slot`: it ends when its parent does, however that ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    parent = parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def follow() -> None:
            connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
    pids[slot] = os.getpid()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(slot % torch.cuda.device_count())
    _here[:] = [_Worker(slot, progress)]


def work(task: Task, folders: Folders) -> Literal["made", "there", "busy"]:
    """Does a task, unless it is done already or another process is at it."""
    locks = folders.out / "locks"
    if _here:
        _here[0].at(0.0)
    try:
        with files.room(folders.out):
            locks.mkdir(parents=True, exist_ok=True)
            with FileLock(locks / f"{task.id}.lock", blocking=False):
                if folders.done(task):
                    return "there"
                (_train if task.trains else _conclude)(task, folders)
    except Timeout:
        return "busy"
    gc.collect()
    return "made"


def _setup(task: Task, folders: Folders) -> Setup:
    return Setup.of(task.job.settings, folders.out / "cache")


def _train(task: Task, folders: Folders) -> None:
    keys, number = task.job.keys, task.number
    before = files.load(folders.stage(keys[number - 1]) / "weights.pt") if number else None
    files.sweep(folders.stage(keys[number]))
    folder = folders.stage(keys[number])
    settings = task.job.settings
    watch = Watch(_here[0], settings.schedule(settings.method.stages[number]).steps) if _here else None
    train(_setup(task, folders), number, before, folder, watch=watch)
    for name in ("last.ckpt", "best.ckpt"):  # of no use after the end, and large
        (folder / name).unlink(missing_ok=True)


def _conclude(task: Task, folders: Folders) -> None:
    job, setup = task.job, _setup(task, folders)
    facts: dict[str, Any] = {}
    for stage, key in zip(job.settings.method.stages, job.keys, strict=True):
        folder = folders.stage(key)
        logged = {
            name: [(step, float(f"{value:.5g}")) for step, value in points]
            for name, points in curves(folder).items()
        }  # fmt: skip
        facts[stage.name] = {"key": key, **files.read_json(folder / "done.json"), "curves": logged}
    weights = files.load(folders.stage(job.keys[-1]) / "weights.pt")
    metrics, pictures = conclude(setup, weights, facts, None)
    before = files.load(folders.stage(job.keys[-2]) / "weights.pt") if len(job.keys) > 1 else None
    probed = probe_weights(setup, before, device=device(job.settings.compute))
    metrics["probe"] = {level: dice and float(f"{dice:.5g}") for level, dice in probed.items()}
    path = folders.pictures(job)
    files.replace(path, lambda aside: np.savez_compressed(aside, allow_pickle=False, **pictures))
    files.write_json(folders.result(job), {**_identity(job), **metrics}, indent=None)


def _identity(job: Job) -> dict[str, Any]:
    """What a result says about itself, so that it stands alone."""
    settings = job.settings
    return {
        "format": FORMAT,
        "key": job.key,
        "name": job.name,
        "asked": settings.labels,
        "settings": {"method": asdict(settings.method), "scale": asdict(settings.scale)},
        "versions": versions(),
        "machine": machine(),
    }


def versions(names: Sequence[str] = ("mmgl-losses", "torch", "lightning", "kornia")) -> dict[str, str]:
    """Versions of what decides numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def machine() -> str:
    """The kind of machine, in a few words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} thread(s) a run"
