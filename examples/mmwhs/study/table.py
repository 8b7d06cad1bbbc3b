"""A table: many runs at once in worker processes, whatever is done already left alone."""

import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from examples.mmwhs import files
from examples.mmwhs.study.plan import Folders, Job, Task, tasks
from examples.mmwhs.study.workers import start, work

PAUSE = 0.5  # seconds between two looks at tasks that another process is at


@dataclass
class State:
    """How far a table is.

    Attributes:
        total: Tasks at the beginning.
        done: Tasks done since.
        made: Those of them that were done here, and not by another process meanwhile.
        running: Slot -> the task of the worker there.
        failed: Task id -> what went wrong.
        skipped: Ids of tasks that a failed one was needed for.
        progress: Slot -> how much of its task is done.
    """

    total: int
    done: int = 0
    made: int = 0
    running: dict[int, Task] = field(default_factory=dict)
    failed: dict[str, tuple[Task, str]] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    progress: Any = ()


class Workers:
    """Processes that each do one task at a time; one that dies fails its task alone.

    Args:
        count: How many.
        threads: Of each, for the CPU.
    """

    def __init__(self, count: int, *, threads: int = 1) -> None:
        self.count, self.threads = count, threads
        self.context = get_context("spawn")
        self.pids = self.context.Array("q", count)
        self.progress = self.context.Array("d", count)
        self.pools: dict[int, ProcessPoolExecutor] = {}

    def submit(self, slot: int, task: Task, folders: Folders) -> Future[str]:
        """Hands a task to the worker in a slot."""
        if slot not in self.pools:
            arguments = (slot, self.pids, self.progress, self.threads)
            self.pools[slot] = ProcessPoolExecutor(1, mp_context=self.context, initializer=start, initargs=arguments)
        return self.pools[slot].submit(work, task, folders)

    def renew(self, slot: int) -> None:
        """Has a new process in the slot for the next task."""
        self.pools.pop(slot).shutdown(wait=False)
        self.pids[slot] = 0

    def close(self, *, kill: bool) -> None:
        """Ends the processes: after their task, or at once."""
        if kill:
            for pid in self.pids[:]:
                with suppress(ProcessLookupError):
                    if pid:
                        os.kill(pid, signal.SIGKILL)
        for pool in self.pools.values():
            pool.shutdown(cancel_futures=True)


def make(
    planned: Sequence[Job], folders: Folders, *, count: int, threads: int = 1, show: Callable[[State], None]
) -> State:
    """Does what is left of the jobs.

    Args:
        planned: The jobs, the most urgent first.
        folders: Where everything goes.
        count: How many worker processes.
        threads: Of each, for the CPU.
        show: Called about twice a second, and whenever a task ends.

    Returns:
        The final state; what failed is in it and in ``out/failed``, and the rest is done.
    """
    left = tasks(planned, folders)
    state = State(total=len(left))
    if not left:
        return state
    workers = Workers(min(count, len(left)), threads=threads)
    state.progress = workers.progress
    futures: dict[Future[str], int] = {}
    finished = False
    try:
        while left or futures:
            _hand_out(left, state, workers, futures, folders)
            done, _ = wait(futures, timeout=PAUSE, return_when=FIRST_COMPLETED)
            busy = False
            for future in done:
                slot = futures.pop(future)
                busy |= not _settle(future, state.running.pop(slot), left, state, folders)
                if future.exception() is not None:
                    workers.renew(slot)
            show(state)
            if busy:
                time.sleep(PAUSE)
        finished = True
    finally:
        workers.close(kill=not finished)
    return state


def _hand_out(
    left: Mapping[str, tuple[Task, str | None]],
    state: State,
    workers: Workers,
    futures: dict[Future[str], int],
    folders: Folders,
) -> None:
    """Gives every idle worker the first task that waits for nothing."""
    running = {task.id for task in state.running.values()}
    ready = (task for task, before in left.values() if task.id not in running and before not in left)
    for slot in range(workers.count):
        if slot not in state.running and (task := next(ready, None)):
            state.running[slot] = task
            futures[workers.submit(slot, task, folders)] = slot


def _settle(
    future: Future[str], task: Task, left: dict[str, tuple[Task, str | None]], state: State, folders: Folders
) -> bool:
    """Books a task that ended; False if another process is at it, so that it has to wait its turn again."""
    entry = left.pop(task.id)
    report = folders.out / "failed" / f"{task.text.replace(': ', '-')}.txt"
    error = future.exception()
    if error is not None:
        text = "".join(traceback.format_exception(error))
        files.write_text(report, text)
        state.failed[task.id] = (task, str(error) or type(error).__name__)
        _skip(task.id, left, state)
    elif future.result() == "busy":
        left[task.id] = entry
        return False
    else:
        report.unlink(missing_ok=True)
        state.done += 1
        state.made += future.result() == "made"
    return True


def _skip(failed: str, left: dict[str, tuple[Task, str | None]], state: State) -> None:
    """Takes out what waits for a failed task, and what waits for that."""
    for key in [key for key, (_, before) in left.items() if before == failed]:
        del left[key]
        state.skipped.add(key)
        _skip(key, left, state)
