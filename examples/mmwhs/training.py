"""One stage of training: its batches, its Lightning module, and a fit that continues where it was killed."""

import csv
import hashlib
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics.classification import MulticlassConfusionMatrix

from examples.mmwhs import files
from examples.mmwhs.augment import Augment
from examples.mmwhs.config import Compute, Part, Schedule, Stage
from examples.mmwhs.evaluate import scores
from mmgl_losses import attach_heads, checks, plugins

Batch = Mapping[str, Tensor]


def seed_of(*parts: object) -> int:
    """A seed that only depends on what the parts say, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


def is_first() -> bool:
    """Whether this is the first of all processes of a run, the one that writes and speaks."""
    return getattr(rank_zero_only, "rank", 0) == 0


class StepSampler(Sampler[list[int]]):
    """The batches of the steps `start` to `stop`, a function of the seed and the step alone.

    Every pass over the data is a new permutation cut into whole batches; what is left over waits for the next
    pass. A batch is shared out evenly over `world` processes, of which this is number `rank`.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, start: int, stop: int, rank: int = 0, world: int = 1
    ) -> None:
        if batch_size % world:
            raise ValueError(checks.message(f"`batch_size` to be a multiple of {world} devices", batch_size))
        self.length, self.batch_size = length, min(batch_size, length)
        self.seed, self.steps, self.rank, self.world = seed, range(start, stop), rank, world

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
            yield batch[self.rank :: self.world]


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves out what Lightning says about every run of this kind; everything else is still heard."""
    expected = (
        "The '.*_dataloader' does not have many workers",
        "Checkpoint directory .* exists and is not empty",
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    )
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in expected:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def build(part: Part, kind: str, classes: int, *args: Any) -> nn.Module:
    """A head or a loss by its name, with ``"classes"`` among its options replaced by their number."""
    options = {key: classes if value == "classes" else value for key, value in part.options.items()}
    return plugins.create(kind, part.name, *args, **options)


class Untapped(nn.Module):
    """A network without heads, called like one that has them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and no levels."""
        return self.net(images), {}


class StageModule(lightning.LightningModule):
    """A network with the heads and the loss of one stage.

    Args:
        net: The whole network; `stage` says which part of it trains.
        stage: The stage.
        schedule: Its schedule.
        classes: Number of classes, background included.
        size: Side of a slice, for the pass that sizes the heads.
        seed: Of the run.
    """

    def __init__(self, net: nn.Module, stage: Stage, schedule: Schedule, *, classes: int, size: int, seed: int) -> None:
        super().__init__()
        self.stage, self.schedule, self.seed = stage, schedule, seed
        self.augment = Augment(stage.augmentation)
        torch.manual_seed(seed_of(seed, stage.name))
        self.loss = build(stage.loss, "loss", classes)
        self.matrix = MulticlassConfusionMatrix(classes)
        trained = net if stage.part == "whole" else net.get_submodule(stage.part)
        if stage.taps:
            example = torch.rand(2 * stage.copies, 1, size, size)
            labels = torch.randint(classes, (len(example), size, size)) if stage.labels else None
            heads = {name: partial(build, head, "head", classes) for name, head in stage.taps.items()}
            self.tapped = attach_heads(trained, example, heads, output=stage.output)
            self.tapped.eval()  # the pass below leaves running statistics alone
            self.tapped.freeze_unused(self.loss_of(example, labels))
            self.tapped.train()
        else:
            self.tapped = Untapped(trained)

    def loss_of(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The stage's loss of augmented images, and labels where it has them."""
        output, levels = self.tapped(images)
        if self.stage.output:
            levels = {**levels, "output": output}
        return self.loss(levels) if labels is None else self.loss(levels, labels)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Makes everything random in a step depend on its number alone, so that a resumed run goes on alike."""
        torch.manual_seed(seed_of(self.seed, self.stage.name, self.global_step, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Augments, taps, and takes the loss."""
        labels = batch["label"] if self.stage.labels else None
        copies = [self.augment(batch["image"], labels) for _ in range(self.stage.copies)]
        images = torch.cat([image for image, _ in copies])
        targets = None if labels is None else torch.cat([label for _, label in copies if label is not None])
        loss = self.loss_of(images, targets)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Counts pixels by true and predicted class."""
        output, _ = self.tapped(batch["image"])
        self.matrix.update(output.argmax(dim=1), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """The mean Dice over the structures, pooled over the validation slices."""
        dice = scores(self.matrix.compute())["dice"]["mean"]
        self.log("validation_dice", -1.0 if dice is None else dice, prog_bar=True, sync_dist=True)
        self.matrix.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam, its rate falling along a cosine to zero over the stage."""
        s = self.schedule
        trained = [p for p in self.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(trained, lr=s.learning_rate, weight_decay=s.weight_decay)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, s.steps)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


class StageData(lightning.LightningDataModule):
    """Training batches from the step that is next, and validation slices."""

    def __init__(
        self, training: Dataset, validation: Dataset | None, schedule: Schedule, *, seed: int, workers: int
    ) -> None:
        super().__init__()
        self.training, self.validation = training, validation
        self.schedule, self.seed, self.workers = schedule, seed, workers

    def train_dataloader(self) -> DataLoader:
        """The batches up to the next time the state is saved."""
        trainer = self.trainer
        assert trainer is not None
        start = trainer.current_epoch * self.schedule.every
        sampler = StepSampler(
            len(self.training),  # pyright: ignore[reportArgumentType]
            self.schedule.batch_size,
            seed=self.seed,
            start=start,
            stop=start + self.schedule.every,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )
        return DataLoader(self.training, batch_sampler=sampler, num_workers=self.workers)

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
    progress: bool = False,
) -> None:
    """Trains a stage to its end, from the last state saved in `folder`, and takes the best weights if it validates.

    Args:
        module: Trained in place.
        data: Its batches.
        folder: Of the stage: ``last.ckpt``, ``best.ckpt`` and the curves.
        compute: The machine.
        finish: Called on the first process with plain facts of the stage (``steps``, ``seconds``, and of a
            validated one the best Dice and its step) before any process goes on.
        progress: Whether to draw a progress bar.
    """
    schedule, validates = module.schedule, data.validation is not None
    last, epochs = folder / "last.ckpt", schedule.steps // schedule.every
    start = files.load(last)["epoch"] + 1 if last.is_file() else 0
    logs = folder / "curves" / f"from-step-{start * schedule.every}"
    if is_first():
        shutil.rmtree(logs, ignore_errors=True)  # of a session that ended before it saved a state
    timer = Timer(interval="epoch", verbose=False)
    keep = {"dirpath": folder, "enable_version_counter": False}
    best = ModelCheckpoint(filename="best", monitor="validation_dice", mode="max", save_weights_only=True, **keep)
    always = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **keep)
    callbacks: list[Callback] = [timer, *([best] if validates else []), always]
    if progress:
        callbacks.append(RichProgressBar(leave=False))
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
            logger=CSVLogger(folder, logs.parent.name, version=logs.name),
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
        )
        trainer.fit(module, data, ckpt_path=str(last) if start else None, weights_only=True)
    facts: dict[str, Any] = {"steps": schedule.steps, "seconds": round(timer.time_elapsed("train"), 2)}
    if validates:
        state = files.load(folder / "best.ckpt")
        module.load_state_dict(state["state_dict"])
        score = best.best_model_score
        facts["validation_dice"] = None if score is None else float(score)
        facts["best_step"] = state["global_step"]
    if trainer.is_global_zero:
        finish(facts)
    trainer.strategy.barrier()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What a stage logged, by name: pairs of steps done and value, of all the sessions it took."""
    values: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("curves/from-step-*/metrics.csv"), key=_first_step):
        first = _first_step(path)
        values = {name: {s: v for s, v in points.items() if s <= first} for name, points in values.items()}
        with path.open(newline="") as lines:
            for row in csv.DictReader(lines):
                for name, value in row.items():
                    if value and name not in ("step", "epoch"):
                        values.setdefault(name, {})[int(row["step"]) + 1] = float(value)
    return {name: sorted(points.items()) for name, points in values.items()}


def _first_step(path: Path) -> int:
    return int(path.parent.name.rpartition("-")[2])
