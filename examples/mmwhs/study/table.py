"""A table: many runs at once in worker processes of joblib, whatever is done already left alone."""

import gc
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import TerminatedWorkerError

from examples.mmwhs import files
from examples.mmwhs.study import results
from examples.mmwhs.study.plan import Folders, Job, Task, tasks
from examples.mmwhs.study.probe import probe_weights
from examples.mmwhs.train import check
from examples.mmwhs.train.fit import curves
from examples.mmwhs.train.run import conclude, described_stage, logged, silent, train, watch_of
from examples.mmwhs.train.setup import FORMAT, Setup
from examples.mmwhs.train.watch import in_words

Say = Callable[[str], None]
DEAD = "its process was killed, perhaps for lack of memory"


@dataclass
class State:
    """How far a table is: tasks at the beginning, those made since, and by id what failed and what waits for that."""

    total: int
    made: int = 0
    failed: dict[str, tuple[Task, str]] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)


def check_jobs(planned: Sequence[Job], folders: Folders, say: Say) -> None:
    """Says the plan of the first run, and tries all that could end a run after hours."""
    cache = folders.out / "cache"
    first = Setup.of(planned[0].settings, cache)
    for line in check.plan(first, folders.out):
        say(line)
    check.check([Setup.of(job.settings, cache, first.dataset) for job in planned], folders.out, say=say)


def make(planned: Sequence[Job], folders: Folders, *, count: int, threads: int = 1, say: Say = silent) -> State:
    """Does what is left of the jobs.

    Args:
        planned: The jobs, the most urgent first.
        folders: Where everything goes.
        count: How many worker processes; of one, the work is done here.
        threads: Of each, for the CPU.
        say: Takes a line whenever a task ends.

    Returns:
        What was made; what failed is in it and in ``out/failed``, and the rest is done.
    """
    left = tasks(planned, folders)
    state, began = State(total=len(left)), time.monotonic()
    while ready := [task for task, before in left.values() if before not in left]:
        if count == 1:
            del ready[1:]  # a run is finished before the next begins, and a seed before the next one
        for task, said, error in _run(ready, folders, count, threads):
            del left[task.id]
            report = folders.out / "failed" / f"{task.text.replace(': ', '-')}.txt"
            if error:
                files.write_text(report, error)
                state.failed[task.id] = (task, reason(error))
                _skip(task.id, left, state)
            else:
                report.unlink(missing_ok=True)
                state.made += said != "there"
            ended = state.total - len(left)
            rest = (time.monotonic() - began) / ended * len(left)
            words = f"failed: {state.failed[task.id][1]}" if error else said
            say(f"{ended} of {state.total}: {task.text}: {words}; about {in_words(rest)} left")
    return state


def reason(error: str) -> str:
    """The last line of a traceback; of what was refused, the sentence alone."""
    line = error.strip().splitlines()[-1]
    _, refused, sentence = line.partition("Error: Expected ")
    return f"Expected {sentence}" if refused else line


def _run(ready: Sequence[Task], folders: Folders, count: int, threads: int) -> Iterator[tuple[Task, str, str]]:
    """Does tasks that wait for nothing; of each, as it ends, what there is to say, or what went wrong.

    Where a worker was killed, those that have not ended are done again one by one, so that only the killer fails.
    """
    waiting = {task.id: task for task in ready}
    try:
        pool: Any = Parallel(n_jobs=count, return_as="generator_unordered", pre_dispatch="all")
        calls: Any = [delayed(work)(task, folders, os.getpid(), threads, slot) for slot, task in enumerate(ready)]
        for key, said, error in pool(calls):
            yield waiting.pop(key), said, error
    except TerminatedWorkerError:
        for task in list(waiting.values()):
            try:
                alone: Any = Parallel(n_jobs=2)([delayed(work)(task, folders, os.getpid(), threads, 0)])
                ((_, said, error),) = alone
            except TerminatedWorkerError:
                said, error = "", DEAD
            yield task, said, error
    except BaseException:
        if count > 1:
            get_reusable_executor().shutdown(wait=True, kill_workers=True)
        raise


def _skip(failed: str, left: dict[str, tuple[Task, str | None]], state: State) -> None:
    """Takes out what waits for a failed task, and what waits for that."""
    for key in [key for key, (_, before) in left.items() if before == failed]:
        del left[key]
        state.skipped.add(key)
        _skip(key, left, state)


_followed: set[int] = set()


def _follow(parent: int) -> None:
    """Ends this process when its parent does, however that ended; the parent alone hears the keyboard."""
    if os.getpid() == parent or parent in _followed:
        return
    _followed.add(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def work(task: Task, folders: Folders, parent: int, threads: int = 1, slot: int = 0) -> tuple[str, str, str]:
    """Does a task, unless it is done already; waits while another process is at it.

    Returns:
        Its id, what there is to say (``"there"`` where it was done), and, where it failed, the traceback.
    """
    _follow(parent)
    if os.getpid() != parent:
        torch.set_num_threads(threads)
    try:
        with files.room(folders.out):
            locks = folders.out / "locks"
            locks.mkdir(parents=True, exist_ok=True)
            with FileLock(locks / f"{task.id}.lock"):  # the lock dies with its process
                if folders.trained(task.id) if task.trains else task.id in folders.finished():
                    return task.id, "there", ""
                said = (_train if task.trains else _conclude)(task, folders, slot)
    except Exception:
        return task.id, "", traceback.format_exc()
    gc.collect()
    return task.id, said, ""


def _train(task: Task, folders: Folders, slot: int) -> str:
    keys, number, settings = task.job.keys, task.number, task.job.settings
    folder, behind = folders.stage(keys[number]), folders.stage(keys[number - 1]) if number else None
    before = files.load(behind / "weights.pt") if behind is not None else None
    files.sweep(folder)
    if (devices := torch.cuda.device_count()) > 1 and settings.compute.accelerator != "cpu":
        settings = replace(settings, compute=replace(settings.compute, devices=f"{slot % devices},"))
    stage = settings.method.stages[number]
    setup, said = Setup.of(settings, folders.out / "cache"), logged(silent, folders.out / "log.txt")
    watch = watch_of(setup, number, behind, name=task.text, say=said)
    train(setup, number, before, folder, watch=watch)
    for name in ("last.ckpt", "best.ckpt"):  # of no use after the end, and large
        (folder / name).unlink(missing_ok=True)
    return described_stage(stage.name, files.read_json(folder / "done.json"), setup.store.unit)


def _conclude(task: Task, folders: Folders, slot: int) -> str:
    job, setup = task.job, Setup.of(task.job.settings, folders.out / "cache")
    facts: dict[str, Any] = {}
    for stage, key in zip(job.settings.method.stages, job.keys, strict=True):
        folder = folders.stage(key)
        logs = {name: [(s, float(f"{v:.5g}")) for s, v in points] for name, points in curves(folder).items()}
        facts[stage.name] = {"key": key, **files.read_json(folder / "done.json"), "curves": logs}
    weights = files.load(folders.stage(job.keys[-1]) / "weights.pt")
    metrics, pictures = conclude(setup, weights, facts, None)
    if not setup.store.patch:
        kinds = [stage.kind for stage in job.settings.method.stages]
        last = max((number for number, kind in enumerate(kinds) if kind == "finetune"), default=len(kinds) - 1)
        before = files.load(folders.stage(job.keys[last - 1]) / "weights.pt") if last else None
        probed = probe_weights(setup, before, device=check.device(job.settings.compute))
        metrics["probe"] = {level: dice and float(f"{dice:.5g}") for level, dice in probed.items()}
    path = folders.pictures(job)
    files.replace(path, lambda aside: np.savez_compressed(aside, allow_pickle=False, **pictures))
    settings = {"method": asdict(job.settings.method), "scale": asdict(job.settings.scale)}
    about = {"format": FORMAT, "key": job.key, "name": job.name, "asked": job.settings.labels, "settings": settings}
    results.append(folders.results, {**about, **metrics})
    dice = metrics["pooled"]["dice"]["mean"]
    return "no Dice" if dice is None else f"Dice {dice:.3f}"
