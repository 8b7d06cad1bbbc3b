"""The runs of a table and the tasks they take: stages that several runs share are one task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from examples.mmwhs.data.datasets import Reading, open_dataset
from examples.mmwhs.study import results
from examples.mmwhs.train import config
from examples.mmwhs.train.setup import Setup


@dataclass(frozen=True)
class Job:
    """One run of a table.

    Attributes:
        name: Of its method.
        settings: Of the run.
        keys: The digests of its stages.
        key: The digest of its result.
    """

    name: str
    settings: config.Run
    keys: tuple[str, ...]
    key: str

    @property
    def id(self) -> str:
        """What it is known by in all files."""
        return identity(self.name, self.settings.labels, self.settings.seed, self.key)

    @property
    def label(self) -> str:
        """What people call the run: ``mmgl-0.1-0``."""
        return f"{self.name}-{self.settings.labels}-{self.settings.seed}"


@dataclass(frozen=True)
class Task:
    """One step of a job: training a stage, or, with the number after the last stage, evaluation."""

    job: Job
    number: int

    @property
    def trains(self) -> bool:
        """Whether it trains a stage."""
        return self.number < len(self.job.keys)

    @property
    def id(self) -> str:
        """What it is known by: tasks with one id are one."""
        return self.job.keys[self.number] if self.trains else self.job.id

    @property
    def text(self) -> str:
        """A few words about it."""
        what = self.job.settings.method.stages[self.number].name if self.trains else "evaluation"
        return f"{self.job.label}: {what}"


@dataclass(frozen=True)
class Folders:
    """Where a table keeps what it makes.

    Attributes:
        out: Its folder: ``cache`` (prepared slices), ``stages/KEY``, ``pictures``, ``failed``, ``locks``.
        results: Where the file of results is.
    """

    out: Path
    results: Path

    def stage(self, key: str) -> Path:
        """The folder of a stage."""
        return self.out / "stages" / key

    def pictures(self, job: Job) -> Path:
        """The arrays of a run's overlay."""
        return self.out / "pictures" / f"{job.id}.npz"

    def finished(self) -> dict[str, dict[str, Any]]:
        """Results by the id of their run."""
        return {identity(r["name"], r["asked"], r["seed"], r["key"]): r for r in results.read(self.results)}

    def trained(self, key: str) -> bool:
        """Whether a stage has left all it has to."""
        return all((self.stage(key) / name).is_file() for name in ("done.json", "weights.pt"))


def identity(name: str, labelled: float | int, seed: int, key: str) -> str:
    """What a run is known by in all files."""
    return f"{name}-{labelled}-{seed}-{key}"


def jobs(
    methods: Mapping[str, config.Method],
    *,
    data: str,
    scale: config.Scale,
    labelled: Sequence[float | int],
    seeds: Iterable[int],
    scored: Literal["test", "validation"] = "test",
    reading: Reading | None = None,
    compute: config.Compute,
    cache: Path,
) -> list[Job]:
    """Every method with every number of labelled patients and every seed; a seed is complete before the next begins.

    A method that asks for its own labelled patients runs once for each seed.
    """
    reading = reading or Reading()
    dataset = open_dataset(data, **asdict(reading))
    planned: dict[str, Job] = {}
    for seed in seeds:
        for count in labelled:
            for name, method in methods.items():
                settings = config.Run(
                    data, method, scale, labelled=count, seed=seed, scored=scored, reading=reading, compute=compute
                )
                setup = Setup.of(settings, cache, dataset)
                job = Job(name, settings, tuple(setup.keys()), setup.key())
                planned.setdefault(job.label, job)
    return list(planned.values())


def tasks(planned: Sequence[Job], folders: Folders) -> dict[str, tuple[Task, str | None]]:
    """What is left to do: id -> the task and the id of the one it waits for, in the order of the jobs."""
    left: dict[str, tuple[Task, str | None]] = {}
    finished = folders.finished()
    for job in planned:
        before = None
        for number in range(len(job.keys) + 1 if job.id not in finished else 0):
            task = Task(job, number)
            if task.trains and folders.trained(task.id):
                before = None
            else:
                left.setdefault(task.id, (task, before))
                before = task.id
    return left
