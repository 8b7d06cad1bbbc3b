"""One stage of training: its batches, its Lightning module, and a fit that continues where it was killed."""

import csv
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, Timer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, Dataset, Sampler

from examples.mmwhs import files
from examples.mmwhs.messages import message
from examples.mmwhs.train.checkpoints import Keep, WholeFiles
from examples.mmwhs.train.config import Compute, Schedule
from examples.mmwhs.train.stage import StageModule, seed_of


def is_first() -> bool:
    """Whether this is the first of all processes of a run, the one that writes and speaks."""
    return getattr(rank_zero_only, "rank", 0) == 0


class StepSampler(Sampler[list[int]]):
    """The batches of the steps `start` to `stop`, a function of the seed and the step alone.

    Every pass over the data is a new permutation cut into whole batches; what is left over waits for the next
    pass. A batch is shared out evenly over `world` processes, of which this is number `rank`.

    Args:
        length: Slices there are.
        batch_size: Of a step.
        seed: Of the order.
        start: The first step.
        stop: The step after the last.
        rank: Of this process.
        world: Processes.
        shows: (length, structures): which structures each slice shows.
        balanced: The share of a batch in which structures take turns: a slice of each is drawn from those that show it.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        seed: int,
        start: int,
        stop: int,
        rank: int = 0,
        world: int = 1,
        shows: np.ndarray | None = None,
        balanced: float = 0.0,
    ) -> None:
        if batch_size % world:
            raise ValueError(message(f"`batch_size` to be a multiple of {world} devices", batch_size))
        self.length, self.batch_size = length, min(batch_size, length)
        self.seed, self.steps, self.rank, self.world = seed, range(start, stop), rank, world
        columns = [] if shows is None else shows.T
        self.showing = [np.flatnonzero(column).tolist() for column in columns if column.any()]
        self.drawn = round(balanced * self.batch_size) if self.showing else 0

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        per_pass = self.length // self.batch_size
        order, current = [], None
        for step in self.steps:
            number, place = divmod(step, per_pass)
            if number != current:
                generator = torch.Generator().manual_seed(seed_of(self.seed, number))
                order, current = torch.randperm(self.length, generator=generator).tolist(), number
            batch = order[place * self.batch_size : (place + 1) * self.batch_size]
            batch = batch[: self.batch_size - self.drawn] + self._for_structures(step)
            yield batch[self.rank :: self.world]

    def _for_structures(self, step: int) -> list[int]:
        """A slice for each structure whose turn it is."""
        generator, drawn = torch.Generator().manual_seed(seed_of(self.seed, "balanced", step)), []
        for turn in range(step * self.drawn, (step + 1) * self.drawn):
            showing = self.showing[turn % len(self.showing)]
            drawn.append(showing[int(torch.randint(len(showing), (1,), generator=generator))])
        return drawn


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what Lightning says about every run of this kind; everything else is still heard."""
    expected = (
        "The '.*_dataloader' does not have many workers",
        "Checkpoint directory .* exists and is not empty",
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        "Found .* module\\(s\\) in eval mode at the start of training",  # what a stage freezes
    )
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for said in expected:
                warnings.filterwarnings("ignore", message=said)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class StageData(lightning.LightningDataModule):
    """Training batches from the step that is next, and validation slices."""

    def __init__(
        self,
        training: Mapping[str, Dataset],
        validation: Dataset | None,
        schedule: Schedule,
        *,
        seed: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.training, self.validation = training, validation
        self.schedule, self.seed, self.workers = schedule, seed, workers

    def train_dataloader(self) -> DataLoader | dict[str, DataLoader]:
        """The batches up to the next time the state is saved; of several data sets, one of each in a step, by name."""
        loaders = {name: self._batches(name, slices) for name, slices in self.training.items()}
        return loaders if len(loaders) > 1 else next(iter(loaders.values()))

    def _batches(self, name: str, slices: Dataset) -> DataLoader:
        shows = getattr(slices, "shows", None) if name == "labelled" and self.schedule.balanced else None
        trainer = self.trainer
        assert trainer is not None
        start = trainer.current_epoch * self.schedule.every
        sampler = StepSampler(
            len(slices),  # pyright: ignore[reportArgumentType]
            self.schedule.batch_size,
            seed=self.seed,
            start=start,
            stop=start + self.schedule.every,
            rank=trainer.global_rank,
            world=trainer.world_size,
            shows=None if shows is None else shows(),
            balanced=self.schedule.balanced,
        )
        return DataLoader(slices, batch_sampler=sampler, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The validation slices in order, or nothing."""
        if self.validation is None:
            return []
        return DataLoader(self.validation, batch_size=32, num_workers=self.workers)


def fit(
    module: StageModule,
    data: StageData,
    folder: Path,
    compute: Compute,
    *,
    finish: Callable[[dict[str, Any]], None],
    watch: Callback | None = None,
    best: bool = True,
) -> None:
    """Trains a stage to its end, from the last state saved in `folder`.

    Args:
        module: Trained in place.
        data: Its batches.
        folder: Of the stage: ``last.ckpt``, ``best.ckpt`` and the curves.
        compute: The machine.
        finish: Called on the first process with plain facts of the stage (``steps``, ``seconds``, and of a
            validated one the best Dice and its step) before any process goes on.
        watch: A callback more for Lightning, such as `Watch`.
        best: Whether a stage that validates takes the weights that were best then, or goes on with the last.
    """
    schedule, validates = module.schedule, data.validation is not None
    last, epochs = folder / "last.ckpt", schedule.steps // schedule.every
    start = files.load(last)["epoch"] + 1 if last.is_file() else 0
    logs = folder / "curves" / f"from-step-{start * schedule.every}"
    if is_first():
        shutil.rmtree(logs, ignore_errors=True)  # of a session that ended before it saved a state
    timer = Timer(interval="epoch", verbose=False)
    keep = {"dirpath": folder, "enable_version_counter": False}
    chosen = Keep(filename="best", monitor="validation_dice", mode="max", save_weights_only=True, **keep)
    always = Keep(filename="last", save_on_train_epoch_end=True, **keep)
    callbacks: list[Callback] = [timer, *([chosen] if validates and best else []), always, *([watch] if watch else [])]
    with quiet():
        trainer = lightning.Trainer(
            accelerator=compute.accelerator,
            devices=compute.devices,
            num_nodes=compute.num_nodes,
            precision=compute.precision,  # pyright: ignore[reportArgumentType]
            max_epochs=epochs,
            reload_dataloaders_every_n_epochs=1,
            use_distributed_sampler=False,
            limit_val_batches=None if validates else 0,
            num_sanity_val_steps=0,
            log_every_n_steps=max(1, schedule.every // 10),
            logger=loggers(logs, compute),
            callbacks=callbacks,
            plugins=[WholeFiles()],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with files.room(folder):
            trainer.fit(module, data, ckpt_path=str(last) if start else None, weights_only=True)
    facts: dict[str, Any] = {"steps": schedule.steps, "seconds": round(timer.time_elapsed("train"), 2)}
    if validates and not best:
        facts["validation_dice"] = float(trainer.callback_metrics["validation_dice"])
        facts["best_step"] = schedule.steps
    elif validates:
        state = files.load(folder / "best.ckpt")
        module.load_state_dict(state["state_dict"])
        score = chosen.best_model_score
        facts["validation_dice"] = None if score is None else float(score)
        facts["best_step"] = state["global_step"]
    if trainer.is_global_zero:
        finish(facts)
    trainer.strategy.barrier()


def loggers(logs: Path, compute: Compute) -> list[Logger]:
    """Where a session logs to: the folder `logs`, and, if asked, events of TensorBoard in it.

    Raises:
        ValueError: There is no TensorBoard.
    """
    found: list[Logger] = [CSVLogger(logs.parent.parent, logs.parent.name, version=logs.name)]
    if compute.logger == "tensorboard":
        try:
            found.append(TensorBoardLogger(logs.parent.parent, logs.parent.name, version=logs.name))
        except ModuleNotFoundError as error:
            cure = "Install it with `pip install tensorboard`, or leave out --logger."
            raise ValueError(message("tensorboard, for --logger tensorboard", "no such package", cure)) from error
    return found


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What a stage logged, by name: pairs of steps done and value, of all the sessions it took."""
    values: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("curves/from-step-*/metrics.csv"), key=_first_step):
        first = _first_step(path)
        values = {name: {s: v for s, v in points.items() if s <= first} for name, points in values.items()}
        with path.open(newline="") as lines:
            for row in csv.DictReader(line for line in lines if line.endswith("\n")):  # the last may be cut short
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        values.setdefault(name, {})[int(row["step"]) + 1] = float(value)
    return {name: sorted(points.items()) for name, points in values.items()}


def _first_step(path: Path) -> int:
    return int(path.parent.name.rpartition("-")[2])
