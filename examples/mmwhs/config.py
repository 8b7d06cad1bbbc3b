"""What a run is, as plain data: a method, a scale, the data, and the machine it runs on.

A method (``methods/*.yaml``) says which stages run, on which planes, with which levels and losses. A scale
(``scales/*.yaml``) says how large the network and the slices are and how long each kind of stage trains.
Neither has code of its own: heads and losses are names that `mmgl_losses.plugins` knows.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mmgl_losses import checks

HERE = Path(__file__).parent
T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A head or a loss by its name in `mmgl_losses.plugins`, with its options.

    The option value ``"classes"`` stands for the number of classes of the data set, background included.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: The stage's folder and its name in tables.
        kind: ``"global"`` augments every slice twice and gives the loss the levels alone; ``"local"`` gives it the
            levels and the labels; ``"finetune"`` adds the network's own output as the last level and validates.
        loss: The loss on the levels.
        taps: Module name in the trained part -> head, in the order in which the loss takes the levels.
        part: What is trained: the encoder alone, or the whole network.
        planes: Slices of all planes of the data set, or of its main plane.
        augmentation: A name in `augment.AUGMENTATIONS`.
    """

    name: str
    kind: Literal["global", "local", "finetune"]
    loss: Part
    taps: dict[str, Part] = field(default_factory=dict)
    part: Literal["encoder", "whole"] = "whole"
    planes: Literal["all", "main"] = "main"
    augmentation: str = "segmentation"

    @property
    def labels(self) -> bool:
        """Whether the stage sees labels, and so only the labelled patients."""
        return self.kind != "global"

    @property
    def copies(self) -> int:
        """How many augmentations of each slice make the batch."""
        return 2 if self.kind == "global" else 1

    @property
    def output(self) -> bool:
        """Whether the network's own output is the last level."""
        return self.kind == "finetune"


@dataclass(frozen=True)
class Method:
    """The stages of a method, in order; the last one fine-tunes."""

    title: str
    stages: list[Stage]

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError(checks.message("every stage of a method to have its own name", names))
        if not self.stages or self.stages[-1].kind != "finetune":
            got = self.stages[-1].kind if self.stages else "no stage"
            raise ValueError(checks.message("a method whose last stage is of kind 'finetune'", got))


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one kind of stage trains: Adam, the rate falling along a cosine to zero.

    Attributes:
        steps: Optimiser steps.
        every: The state is saved (and a fine-tuned network validated) after each `every` steps.
        batch_size: Slices in a step, over all devices.
        learning_rate: At the first step.
        weight_decay: Of the optimiser.
    """

    steps: int
    every: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "every", "batch_size"):
            checks.integer(name, getattr(self, name), least=1)
        checks.number("learning_rate", self.learning_rate, above=0.0)
        checks.number("weight_decay", self.weight_decay, least=0.0)
        if self.steps % self.every:
            raise ValueError(checks.message(f"`steps` to be a multiple of `every`={self.every}", self.steps))


@dataclass(frozen=True)
class Scale:
    """The size of the network and of the slices, and the schedules of the three kinds of stage.

    Attributes:
        channels: Of the five levels of the U-Net.
        norm: Its normalisation: ``"instance"``, ``"batch"`` or none.
        schedules: Kind of stage -> schedule.
        slice_size: Side of a slice in pixels; None takes the data set's own.
        validation_slices: At most so many validation slices choose the best weights of fine-tuning.
    """

    channels: list[int]
    schedules: dict[str, Schedule]
    norm: Literal["instance", "batch"] | None = "batch"
    slice_size: int | None = None
    validation_slices: int = 200


@dataclass(frozen=True)
class Compute:
    """The machine, in the words of Lightning's Trainer; the same run may continue on another one."""

    accelerator: str = "auto"
    devices: int | str = 1
    num_nodes: int = 1
    precision: str = "32-true"
    workers: int = 0


@dataclass(frozen=True)
class Run:
    """Everything that decides the result of one run, and the machine it is made on."""

    data: str
    method: Method
    scale: Scale
    labelled: float | int = 0.2
    seed: int = 0
    compute: Compute = field(default_factory=Compute)

    def identity(self) -> dict[str, Any]:
        """What decides the result: everything but the machine."""
        return {key: value for key, value in asdict(self).items() if key != "compute"}

    def schedule(self, stage: Stage) -> Schedule:
        """The schedule of a stage."""
        return self.scale.schedules[stage.kind]

    def __post_init__(self) -> None:
        for kind in {stage.kind for stage in self.method.stages} - set(self.scale.schedules):
            expected = "a scale with a schedule for every kind of stage of the method"
            raise ValueError(checks.message(expected, f"no schedule for {kind!r}"))


def load(kind: type[T], source: str | Path) -> T:
    """A `Method` or `Scale` by its built-in name or from a YAML file, with every value checked.

    Raises:
        ValueError: The name is unknown, or the file does not describe one.
    """
    folder = HERE / ("methods" if kind is Method else "scales")
    word = kind.__name__.lower()
    path = Path(source)
    if path.suffix not in (".yaml", ".yml"):
        checks.one_of(word, str(source), built_in(kind))
        path = folder / f"{source}.yaml"
    if not path.is_file():
        raise ValueError(checks.message(f"`{word}` to be a built-in name or a YAML file", f"{source} (no file)"))
    return parse(kind, yaml.safe_load(path.read_text()), where=str(source))


def built_in(kind: type) -> list[str]:
    """The built-in names of methods or scales."""
    folder = HERE / ("methods" if kind is Method else "scales")
    return sorted(path.stem for path in folder.glob("*.yaml"))


def parse(kind: type[T], values: Any, *, where: str) -> T:
    """An instance of a dataclass of this module from plain values, with every value checked.

    Raises:
        ValueError: A value is missing, unknown or of the wrong type; the message names it and `where`.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    try:
        return parser.instantiate(parser.parse_object({"value": values})).value
    except ArgumentError as error:
        expected = f"{where} to describe a {kind.__name__.lower()}"
        raise ValueError(checks.message(expected, str(error))) from error


def to_yaml(run: Run) -> str:
    """The whole configuration of a run as YAML, in the order of its fields."""
    return yaml.safe_dump(asdict(run), sort_keys=False, allow_unicode=True)
