"""The runs of a table and the tasks they take: stages that several runs share are one task."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from examples.mmwhs import files
from examples.mmwhs.data.datasets import open_dataset
from examples.mmwhs.train import config
from examples.mmwhs.train.setup import FORMAT, Setup


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
        return self.job.keys[self.number] if self.trains else f"{self.job.label}-{self.job.key}"

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
        results: One JSON file for each finished run.
    """

    out: Path
    results: Path

    def stage(self, key: str) -> Path:
        """The folder of a stage."""
        return self.out / "stages" / key

    def result(self, job: Job) -> Path:
        """The file of a finished run."""
        return self.results / f"{job.label}-{job.key}.json"

    def pictures(self, job: Job) -> Path:
        """The arrays of a run's overlay."""
        return self.out / "pictures" / f"{job.label}-{job.key}.npz"

    def done(self, task: Task) -> bool:
        """Whether a task has left all it has to."""
        if not task.trains:
            return self.result(task.job).is_file()
        folder = self.stage(task.job.keys[task.number])
        return (folder / "done.json").is_file() and (folder / "weights.pt").is_file()


def jobs(
    methods: Mapping[str, config.Method],
    *,
    data: str,
    scale: config.Scale,
    labelled: Sequence[float | int],
    seeds: Iterable[int],
    scored: Literal["test", "validation"] = "test",
    compute: config.Compute,
    cache: Path,
) -> list[Job]:
    """Every method with every number of labelled patients and every seed; a seed is complete before the next begins.

    A method that asks for its own labelled patients runs once for each seed.
    """
    dataset = open_dataset(data)
    planned: dict[str, Job] = {}
    for seed in seeds:
        for count in labelled:
            for name, method in methods.items():
                settings = config.Run(data, method, scale, labelled=count, seed=seed, scored=scored, compute=compute)
                setup = Setup.of(settings, cache, dataset)
                job = Job(name, settings, tuple(setup.keys()), setup.key())
                planned.setdefault(job.label, job)
    return list(planned.values())


def tasks(planned: Sequence[Job], folders: Folders) -> dict[str, tuple[Task, str | None]]:
    """What is left to do: id -> the task and the id of the one it waits for, in the order of the jobs."""
    left: dict[str, tuple[Task, str | None]] = {}
    for job in planned:
        if folders.done(Task(job, len(job.keys))):
            continue
        before = None
        for number in range(len(job.keys) + 1):
            task = Task(job, number)
            if not folders.done(task):
                left.setdefault(task.id, (task, before))
                before = task.id
            else:
                before = None
    return left


def read_results(folder: Path) -> list[dict[str, Any]]:
    """All finished runs in a folder of results that this version made."""
    found = [files.read_json(path) for path in sorted(folder.glob("*.json"))]
    return [result for result in found if result.get("format") == FORMAT]
