"""What a stage is made of, as plain data: heads and losses by name, how it teaches itself, and a contrast beside it."""

from dataclasses import dataclass, field
from typing import Any, Literal

from examples.mmwhs.messages import integer, message, number


@dataclass(frozen=True)
class Part:
    """A head or a loss by its name in `mmgl_losses.plugins`, with its options.

    The option value ``"classes"`` stands for the number of classes of the data set, background included. An option of
    heads that differs from tap to tap is ``{each: [1, 2, 4]}``, in the order of the taps.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def each(self, count: int) -> list["Part"]:
        """The part once for each of `count` taps, with its own options."""
        listed = {key: value["each"] for key, value in self.options.items() if _is_each(value)}
        for key, values in listed.items():
            if len(values) != count:
                raise ValueError(message(f"`{key}` of {self.name} for each of {count} taps", values))
        return [
            Part(self.name, self.options | {key: values[i] for key, values in listed.items()}) for i in range(count)
        ]


def _is_each(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"each"}


@dataclass(frozen=True)
class Teaching:
    """How a network learns from slices that a teacher labels: the moving average of what it is itself.

    The teacher sees a slice as geometry left it; the network sees it with strong intensities, too, and with a box of it
    exchanged with one of a labelled slice.

    Attributes:
        momentum: Of the moving average.
        confidence: Points of which the teacher is less sure have no label.
        side: Of the box that slices exchange, as a fraction of that of a slice; 0 mixes nothing.
        weight: Of the loss on the teacher's labels, beside that on the true ones.
        augmentation: Whose intensities the network sees, a name in `augment.AUGMENTATIONS`.
    """

    momentum: float = 0.99
    confidence: float = 0.0
    side: float = 2 / 3
    weight: float = 0.5
    augmentation: str = "local"

    def __post_init__(self) -> None:
        for name in ("momentum", "confidence", "side"):
            number(name, getattr(self, name), least=0.0, most=1.0)
        number("weight", self.weight, least=0.0)


@dataclass(frozen=True)
class Contrast:
    """A contrast of points beside the losses of self-training, with heads of its own.

    Attributes:
        loss: On the features of these heads.
        taps: Modules of the network, in the order in which the loss takes the levels.
        head: The head on each of them.
        ids: What makes two points a positive pair. ``"labels"``: their label in mixed slices, true or the teacher's.
            ``"places"``: the same place in two augmentations of an unlabelled slice, which differ in intensity alone.
            That is one more pass through the network.
        cell: Side in pixels of what counts as one place.
        weight: Of this loss beside the others.
    """

    loss: Part
    taps: list[str]
    head: Part
    ids: Literal["labels", "places"] = "labels"
    cell: int = 1
    weight: float = 0.1

    def __post_init__(self) -> None:
        number("weight", self.weight, least=0.0)
        integer("cell", self.cell, least=1)
        if not self.taps:
            raise ValueError(message("one or more `taps` in `contrast`", self.taps))

    def check(self, where: str, beside: Part | None) -> None:
        """Raises ValueError if it does not fit a stage; `beside` is the loss of that, where it is of self-training."""
        options = self.loss.options
        if beside is None:
            raise ValueError(
                message(f"`contrast` in a stage of kind 'selftrain' alone, not in {where}", "another kind")
            )
        if self.ids == "labels" and options.get("ignore_index") != (ignored := beside.options.get("ignore_index")):
            expected = f"`ignore_index: {ignored}` in the loss of `contrast` in {where}, as in the loss of the stage"
            raise ValueError(message(expected, options))
        if self.ids == "places" and options.get("pairs") != "augmentations":
            expected = f"`pairs: augmentations` in the loss of `contrast` in {where}, whose positives are places"
            raise ValueError(message(expected, options))
