"""What a run stands on: its data, split, slices and network; and what decides the result of each of its stages."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import torch

from examples.mmwhs.data.datasets import Dataset, open_dataset
from examples.mmwhs.data.splits import LeakError, Split, make_split
from examples.mmwhs.data.store import SliceStore
from examples.mmwhs.messages import message
from examples.mmwhs.train import config
from examples.mmwhs.train.stage import seed_of
from mmgl_losses import UNet

FORMAT = 3  # raise it when the code of training or evaluation changes what a stage gives


@dataclass(frozen=True)
class Setup:
    """The settings of a run with what they lead to; built by `of`."""

    settings: config.Run
    dataset: Dataset
    split: Split
    store: SliceStore

    @classmethod
    def of(cls, settings: config.Run, cache: Path, dataset: Dataset | None = None) -> Self:
        """Opens the data set, unless it is given, and draws the split.

        Args:
            settings: Of the run.
            cache: Where prepared slices are kept.
            dataset: The data set of the settings.
        """
        if dataset is None:
            dataset = open_dataset(settings.data, **asdict(settings.reading))
        size = settings.scale.slice_size
        size = dataset.description.slice_size if size is None else size
        split = make_split(dataset, labelled=settings.labels, seed=settings.seed)
        setup = cls(settings, dataset, split, SliceStore(dataset, cache, size=size, patch=settings.scale.patch))
        setup.no_twins()
        return setup

    def no_twins(self) -> None:
        """Refuses one image on two sides of the split, whatever its files are called."""
        sides = {patient: side for side in ("train", "validation", "test") for patient in getattr(self.split, side)}
        for twins in self.store.contents.twins(self.dataset.cases):
            if len({sides.get(case.patient) for case in twins}) > 1:
                got = ", ".join(f"{case.id} ({sides.get(case.patient)})" for case in twins)
                cure = "If they are of one patient, say so with --patients; else remove one."
                raise LeakError(message("every image on one side of the split", f"the same voxels in {got}", cure))
        self.store.contents.keep()

    @property
    def classes(self) -> int:
        """Number of classes, background included."""
        return len(self.dataset.description.classes) + 1

    @property
    def architecture(self) -> dict[str, Any]:
        """The arguments of the `UNet`."""
        scale = self.settings.scale
        return {
            "in_channels": 1,
            "out_channels": self.classes,
            **({"spatial_dims": 3} if scale.patch else {}),
            "channels": tuple(scale.channels),
            "norm": scale.norm,
        }

    def split_of(self, stage: config.Stage) -> Split:
        """The split as a stage has it, whose labelled patients may be its own."""
        if stage.labelled is None:
            return self.split
        return make_split(self.dataset, labelled=stage.labelled, seed=self.settings.seed)

    @property
    def pose(self) -> dict[str, float]:
        """How far augmentation turns and how often it mirrors slices at least; nothing of that where all is default."""
        described = self.dataset.description
        return {name: value for name in ("rotation", "flip") if (value := getattr(described, name))}

    def planes(self, stage: config.Stage) -> tuple[str, ...]:
        """The planes whose slices a stage sees."""
        return self.store.planes if stage.planes == "all" else (self.store.main_plane,)

    def network(self, stage: config.Stage | None, before: Mapping[str, Any] | None) -> UNet:
        """The network as a stage finds it: the weights before it, or of the seed, where it does not inherit them.

        Channels last: on a CPU, that makes its convolutions a fifth faster.
        """
        torch.manual_seed(seed_of(self.settings.seed, "network"))
        net = UNet(**self.architecture)
        if not self.store.patch:
            net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        parts = None if stage is None else stage.inherits
        for name in parts or ():  # also where there is nothing to inherit yet, so that `check` finds a wrong one
            net.get_submodule(name)
        if before is not None:
            taken = {k: v for k, v in before.items() if parts is None or k.startswith(tuple(f"{p}." for p in parts))}
            net.load_state_dict({**net.state_dict(), **taken})
        return net

    def keys(self) -> list[str]:
        """For each stage a digest of all that decides the weights it gives, the stages before it included.

        Two runs whose digests of a stage agree share it: a global stage without labels, for one, serves every method
        that goes on from it and every number of labelled patients.
        """
        keys: list[str] = []
        for stage in self.settings.method.stages:
            patients = self.split_of(stage).labelled if stage.labels else self.split.train
            decides = {
                "format": FORMAT,
                "data": self._files(patients, labels=stage.labels),
                "slices": (self.store.size, self.dataset.description.crop, self.store.percentiles, self.planes(stage)),
                "network": self.architecture,
                "stage": _said(replace(stage, planes="main")),
                "schedule": {k: v for k, v in asdict(self.settings.schedule(stage)).items() if k != "balanced" or v},
                "seed": self.settings.seed,
                "before": keys[-1:],
            }
            if self.pose and not self.store.patch:
                decides["pose"] = self.pose
            if stage.labels and stage.unlabelled:
                decides["unlabelled"] = self._files(self.split.train, labels=False)
            if self.settings.chooses(stage):
                decides["validation"] = (self._files(self.split.validation), self.settings.scale.validation_slices)
            keys.append(digest(decides))
        return keys

    def key(self) -> str:
        """A digest of all that decides the result of the run."""
        part = self.settings.scored
        return digest({"format": FORMAT, "last": self.keys()[-1], part: self._files(getattr(self.split, part))})

    def seen(self) -> dict[str, Any]:
        """What the run sees of the data: the description, and a digest of every file, by case."""
        described, files = self.dataset.description, {}
        for case in self.dataset.cases_of(self.split.train):
            files[f"image of {case.id}"] = self.store.contents.of(case.image)
        labelled = {p for stage in self.settings.method.stages if stage.labels for p in self.split_of(stage).labelled}
        for patients in (labelled, self.split.validation, getattr(self.split, self.settings.scored)):
            for case in self.dataset.cases_of(patients, labels=True):
                image, label = self.store.contents.case(case)
                files |= {f"image of {case.id}": image, f"label of {case.id}": label}
        self.store.contents.keep()
        structures = {f"structure {value}": name for value, name in described.structures.items()}
        slices = f"{self.store.patch or self.store.size}, {', '.join(self.store.planes)}, {described.crop}"
        return {"data set": described.name, "slices": slices, **structures, **files}

    def _files(self, patients: Collection[str], *, labels: bool = True) -> list[Any]:
        """What the cases of some patients are: their names, what their files hold, and what labels mean."""
        described = self.dataset.description
        cases = self.dataset.cases_of(patients, labels=labels)
        held = [(case.id, *self.store.contents.case(case, label=labels)) for case in cases]
        return [described.values, sorted(described.fixes.items()), held]


def _said(stage: config.Stage) -> dict[str, Any]:
    """The values of a stage that are not the default, so that a new field leaves old digests alone."""
    values = asdict(stage)
    for field in fields(stage):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if values[field.name] == default:
            del values[field.name]
    return values


def digest(value: Any) -> str:
    """16 hexadecimal digits of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
