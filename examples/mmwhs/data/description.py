"""What a data set holds, and what one of its cases is."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from examples.mmwhs.messages import message

PLANES = ("sagittal", "coronal", "transaxial")
UNKNOWN = 255  # no class has this index


@dataclass(frozen=True)
class Description:
    """What a data set holds and how it is sliced.

    Args:
        name: the name used in reports.
        classes: names of the foreground structures; structure k is class k + 1 in training.
        values: their values in the label files, in the same order; 0 is the background.
        planes: the planes worth slicing.
        main_plane: the plane in which segmentation is trained and evaluated.
        slice_size: the size S of a slice, S x S.
        crop: below 1, a slice is its central square, whose side is this fraction of the longer side; 1 takes all of
            the slice, whatever its sides.
        rotation: augmentation turns slices at least so many degrees either way, in every stage of every method: how far
            apart patients lie. Patches of volumes turn as they do without it.
        flip: augmentation mirrors slices with this probability, in the same way: 0 for organs that know their side.
        fixes: known wrong label values and the value each stands for.
        note: licence, citation or caveat, a line for reports.
    """

    name: str
    classes: tuple[str, ...]
    values: tuple[int, ...]
    planes: tuple[str, ...] = PLANES
    main_plane: str = "transaxial"
    slice_size: int = 160
    crop: float = 1.0
    rotation: float = 0.0
    flip: float = 0.0
    fixes: Mapping[int, int] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        for what, held in (("name", self.classes), ("value", self.values)):
            if twice := [each for each, count in Counter(held).items() if count > 1]:
                named = [f"{v}: {n}" for v, n in zip(self.values, self.classes, strict=False)]
                got = f"{twice[0]!r} twice in {', '.join(named)}"
                raise ValueError(message(f"every structure of {self.name} to have its own {what}", got, "Rename one."))

    @property
    def structures(self) -> dict[str, str]:
        """Label value, as text, -> name: results are keyed by the value, and names are only shown."""
        return {str(value): name for value, name in zip(self.values, self.classes, strict=True)}


@dataclass(frozen=True)
class Case:
    """One volume of one patient: its files; without a label it serves the stages that need none."""

    id: str
    patient: str
    image: Path
    label: Path | None
