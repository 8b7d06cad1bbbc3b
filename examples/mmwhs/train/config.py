"""What a run is, as plain data: a method, a scale, the data, and the machine it runs on.

A method (``methods/*.yaml``) says which stages run, on which planes, with which levels and losses. A scale
(``scales/*.yaml``) says how large the network and the slices are and how long each kind of stage trains.
Neither has code of its own: heads and losses are names that `mmgl_losses.plugins` knows.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from examples.mmwhs.data.datasets import Reading
from examples.mmwhs.messages import integer, message, number
from examples.mmwhs.train.parts import Contrast, Part, Teaching


def plain_name(what: str, name: str) -> str:
    """A name that may be that of a file: letters, digits, and . _ - between them."""
    if not re.fullmatch(r"\w+([.-]+\w+)*", name):
        raise ValueError(message(f"{what} to be letters, digits, and . _ - between them", repr(name)))
    return name


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: The stage's name in folders, tables and overrides.
        kind: ``"global"`` gives the loss embeddings of whole slices, ``"local"`` feature maps; ``"finetune"`` gives it
            the network's own output as the last level too, and validates; ``"selftrain"`` does that with slices of all
            training patients beside the labelled ones, and leaves the teacher's weights. Decides the schedule.
        loss: The loss on the levels.
        taps: Modules of the trained part, in the order in which the loss takes the levels.
        head: The head on each of them.
        ids: What makes two things a positive pair: augmentations of one of the ``"images"``; nearness of the
            ``"slices"`` in their volumes (the loss needs a `tolerance`); the ``"labels"`` of points; or the
            ``"places"`` of points, the same in several augmentations. By default images (global) or labels.
        copies: How many augmentations of each slice make the batch.
        aligned: Whether these share their geometry and differ in intensity alone.
        cell: Side in pixels of what counts as one place. Where copies are not aligned, places move with the image, and
            what comes from outside it is place 0, which the loss should ignore.
        keys: A component (`components`) that makes the keys to compare with; its queries are the first augmentation.
        part: What is trained: the encoder alone, or the whole network.
        frozen: Modules of the network that the stage leaves as they are.
        inherits: Modules of the network that come from the stage before, the rest starting anew; None takes all.
        planes: Slices of all planes of the data set, or of its main plane.
        augmentation: A name in `augment.AUGMENTATIONS`.
        schedule: The name of its schedule in the scale; by default its kind.
        labelled: The labelled patients of this stage alone, whatever the run has; 1.0, for a control, is the labels of
            all training patients.
        teaching: How a stage of kind ``"selftrain"`` teaches itself.
        contrast: Of points, beside the losses of self-training.
    """

    name: str
    kind: Literal["global", "local", "finetune", "selftrain"]
    loss: Part
    taps: list[str] = field(default_factory=list)
    head: Part | None = None
    ids: Literal["images", "slices", "labels", "places"] | None = None
    copies: int = 1
    aligned: bool = False
    cell: int = 1
    keys: Part | None = None
    part: Literal["encoder", "whole"] = "whole"
    frozen: list[str] = field(default_factory=list)
    inherits: list[str] | None = None
    planes: Literal["all", "main"] = "main"
    augmentation: str = "segmentation"
    schedule: str | None = None
    labelled: int | float | None = None
    teaching: Teaching | None = None
    contrast: Contrast | None = None

    @property
    def pairs(self) -> str:
        """What makes a positive pair."""
        return self.ids or ("images" if self.kind == "global" else "labels")

    @property
    def labels(self) -> bool:
        """Whether the stage sees labels, and so only the labelled patients."""
        return self.pairs == "labels"

    @property
    def moves_places(self) -> bool:
        """Whether places are augmented with the images, as labels are."""
        return self.pairs == "places" and not self.aligned

    @property
    def output(self) -> bool:
        """Whether the network's own output is the last level."""
        return self.kind in ("finetune", "selftrain")

    @property
    def unlabelled(self) -> bool:
        """Whether the stage sees slices of all training patients, without their labels."""
        return self.teaching is not None or not self.labels

    def __post_init__(self) -> None:
        plain_name("the name of a stage", self.name)
        where = f"stage {self.name!r}"
        integer(f"copies of {where}", self.copies, least=1)
        fitting = {"global": ("images", "slices"), "local": ("labels", "places")}.get(self.kind, ("labels",))
        if self.pairs not in fitting:
            raise ValueError(message(f"`ids` of {where}, of kind {self.kind!r}, among {fitting}", self.pairs))
        if (self.kind == "selftrain") != (self.teaching is not None):
            raise ValueError(message(f"`teaching` in {where}, if it is of kind 'selftrain'", f"kind {self.kind!r}"))
        if self.kind == "selftrain" and not isinstance(self.loss.options.get("ignore_index"), int):
            expected = f"an `ignore_index` in the loss of {where}, for points that have no label"
            raise ValueError(message(expected, self.loss.options))
        if self.contrast is not None:
            self.contrast.check(where, self.loss if self.teaching else None)
        if self.kind == "selftrain" and (self.copies, self.keys) != (1, None):
            raise ValueError(message(f"one copy and no `keys` in {where}", f"copies={self.copies}, keys={self.keys}"))
        if bool(self.taps) != (self.head is not None):
            raise ValueError(message(f"both `taps` and `head` in {where}, or neither", "one of them"))
        integer(f"cell of {where}", self.cell, least=1)
        if self.labelled is not None and not self.labels:
            got = f"`ids` {self.pairs!r}, which see none"
            raise ValueError(message(f"labels in {where}, which has `labelled`", got))
        if self.pairs == "places" and self.copies < 2:
            expected = f"two or more copies in {where}, where positives are the same places"
            raise ValueError(message(expected, f"copies={self.copies}"))
        if self.keys is not None and (self.kind, self.copies) != ("global", 2):
            expected = f"kind 'global' and two copies in {where}, which has `keys`"
            raise ValueError(message(expected, f"kind {self.kind!r}, copies={self.copies}"))


@dataclass(frozen=True)
class Method:
    """The stages of a method, in order; the last one fine-tunes, or trains itself further.

    Attributes:
        title: Its name in reports.
        stages: What it does.
        labelled: The labelled patients it gets whatever others get: 1.0 for the ceiling with all labels.
    """

    title: str
    stages: list[Stage]
    labelled: int | float | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(message("every stage of a method to have its own name", names))
        if not self.stages or not self.stages[-1].output:
            got = self.stages[-1].kind if self.stages else "no stage"
            raise ValueError(message("a method whose last stage is of kind 'finetune' or 'selftrain'", got))


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one kind of stage trains: Adam, the rate falling along a cosine to zero.

    Attributes:
        steps: Optimiser steps.
        every: The state is saved (and a fine-tuned network validated) after each `every` steps.
        batch_size: Slices in a step, over all devices.
        learning_rate: At the first step.
        weight_decay: Of the optimiser.
        balanced: The share of labelled slices in a step that is drawn for what they show, each structure in turn, so
            that none that is small or rare is missed; the others come as they are. nnU-Net has a third.
    """

    steps: int
    every: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    balanced: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "every", "batch_size"):
            integer(name, getattr(self, name), least=1)
        number("learning_rate", self.learning_rate, above=0.0)
        number("weight_decay", self.weight_decay, least=0.0)
        number("balanced", self.balanced, least=0.0, most=1.0)
        if self.steps % self.every:
            raise ValueError(message(f"`steps` to be a multiple of `every`={self.every}", self.steps))


@dataclass(frozen=True)
class Scale:
    """The size of the network and of the slices, and the schedules of the three kinds of stage.

    Attributes:
        channels: Of the five levels of the U-Net.
        norm: Its normalisation: ``"instance"``, ``"batch"`` or none.
        schedules: Kind of stage -> schedule.
        slice_size: Side of a slice in pixels; None takes the data set's own.
        validation_slices: At most so many validation slices choose the best weights of fine-tuning.
        kept: Of fine-tuning, the weights that are ``"best"`` on validation patients, or the ``"last"``: then labels of
            validation patients decide nothing. Of self-training it is always the teacher's last.
        patch: The sides in voxels of patches of volumes, which a network of three dimensions takes in place of slices.
    """

    channels: list[int]
    schedules: dict[str, Schedule]
    norm: Literal["instance", "batch"] | None = "batch"
    slice_size: int | None = None
    validation_slices: int = 200
    kept: Literal["best", "last"] = "best"
    patch: list[int] | None = None

    def __post_init__(self) -> None:
        integer("validation_slices", self.validation_slices, least=1)
        if self.slice_size is not None:
            integer("slice_size", self.slice_size, least=1)
        if self.patch is not None and len(self.patch) != 3:
            raise ValueError(message("`patch` of three sides", self.patch))
        for side in self.patch or ():
            if integer("patch", side, least=1) % 2 ** (len(self.channels) - 1):
                got = f"{side} for {len(self.channels)} levels"
                raise ValueError(message(f"sides of `patch` in multiples of {2 ** (len(self.channels) - 1)}", got))


@dataclass(frozen=True)
class Compute:
    """The machine, in the words of Lightning's Trainer; the same run may continue on another one."""

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    precision: str = "32-true"
    workers: int = 0
    logger: Literal["csv", "tensorboard"] = "csv"  # reports read CSV, which is written in either case

    def __post_init__(self) -> None:
        integer("workers", self.workers, least=0)


@dataclass(frozen=True)
class Run:
    """Everything that decides the result of one run, and the machine it is made on.

    Attributes:
        data: The folder of the data set.
        method: What is done.
        scale: At what size.
        labelled: A fraction of the training patients, or a count of them.
        seed: Of the split, the network and the order of the slices.
        scored: Whose patients the finished network is scored on. What a choice may depend on is scored on validation
            patients: no test patient is opened then.
        reading: How the folder is read, where it does not say so itself.
        compute: The machine.
    """

    data: str
    method: Method
    scale: Scale
    labelled: int | float = 0.2
    seed: int = 0
    scored: Literal["test", "validation"] = "test"
    reading: Reading = field(default_factory=Reading)
    compute: Compute = field(default_factory=Compute)

    def chooses(self, stage: Stage) -> bool:
        """Whether validation patients decide which weights a stage leaves."""
        return stage.kind == "finetune" and self.scale.kept == "best"

    def schedule(self, stage: Stage) -> Schedule:
        """The schedule of a stage."""
        return self.scale.schedules[stage.schedule or stage.kind]

    @property
    def labels(self) -> float | int:
        """The labelled patients: a method that asks for its own gets them."""
        return self.labelled if self.method.labelled is None else self.method.labelled

    def __post_init__(self) -> None:
        for name in {stage.schedule or stage.kind for stage in self.method.stages} - set(self.scale.schedules):
            expected = "a scale with a schedule for every kind of stage of the method"
            raise ValueError(message(expected, f"no schedule for {name!r}"))
