"""Who may be trained on: splits by patient, and the guard that keeps them.

Training, validation and test patients are 2 : 1 : 1, as in the paper, or what the ``splits.json`` of the data
set says. Some training patients are labelled; the labels of the others do not exist for training.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from examples.mmwhs.data.datasets import Dataset
from examples.mmwhs.messages import integer, message, number


class LeakError(ValueError):
    """Training asked for patients, or labels, that it must not see."""


@dataclass(frozen=True)
class Split:
    """Patients by what they are for; `labelled` are those of `train` whose labels may be used."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    labelled: tuple[str, ...]

    def __post_init__(self) -> None:
        parts = (*self.train, *self.validation, *self.test)
        if len(set(parts)) != len(parts):
            twice = sorted({patient for patient in parts if parts.count(patient) > 1})
            raise ValueError(message("every patient in one part of a split", f"{twice} more than once"))
        if not set(self.labelled) <= set(self.train):
            others = sorted(set(self.labelled) - set(self.train))
            raise ValueError(message("labelled patients from the training part", others))
        for name, patients in asdict(self).items():
            if not patients:
                raise ValueError(message(f"at least one patient in `{name}` of a split", "none"))

    def save(self, path: str | Path) -> None:
        """Writes the split as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Split":
        """Reads what :meth:`save` wrote."""
        names = ("train", "validation", "test", "labelled")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            parts = {name: content[name] for name in names}
        except (OSError, ValueError, KeyError, TypeError) as error:
            expected = f"a split with the lists {', '.join(names)} in {path}"
            raise ValueError(message(expected, f"{type(error).__name__}: {error}")) from error
        for name, patients in parts.items():
            if not isinstance(patients, list) or not all(isinstance(patient, str) for patient in patients):
                raise ValueError(message(f"`{name}` to be a list of patients in {path}", patients))
        return cls(**{name: tuple(patients) for name, patients in parts.items()})


def make_split(dataset: Dataset, *, labelled: float | int, seed: int) -> Split:
    """Splits a data set by patient, 2 : 1 : 1 or as its file of splits says, and draws the labelled subset.

    With one seed the parts stay the same whatever `labelled` is, and a smaller labelled subset lies within a
    larger one. With seed 0 and a ``labelled_N`` in ``splits.json`` for the number asked for, it is taken. Patients
    without any label are of the training part, and never labelled.

    Args:
        dataset: the data set.
        labelled: a fraction of the training patients with labels in (0, 1] (float), or a count of them (int): 1.0 is
            all of them, 1 is one.
        seed: draws the parts and the labelled subset.
    """
    rng = np.random.default_rng(integer("seed", seed, least=0))
    given, bare = dataset.given_split, dataset.unlabelled
    if given is None:
        patients = [patient for patient in dataset.patients if patient not in bare]
        if len(patients) < 3:
            expected = f"at least 3 patients with labels in {dataset.root} to split"
            raise ValueError(message(expected, f"{len(patients)} of {len(dataset.patients)} patients"))
        drawn = [patients[i] for i in rng.permutation(len(patients))]
        validation, test = (len(drawn) + 1) // 4, (len(drawn) + 2) // 4
        parts = drawn[validation + test :], drawn[:validation], drawn[validation : validation + test]
    elif "val" in given:
        parts = given["train"], given["val"], given["test"]
    else:  # a fold of nnU-Net holds out one part: a fifth of the others choose weights
        drawn = [each for each in given["train"] if each not in bare]
        drawn = [drawn[i] for i in rng.permutation(len(drawn))]
        if len(drawn) < 2:
            raise ValueError(message(f"2 patients with labels in `train` of a fold of {dataset.root}", len(drawn)))
        few = max(1, len(drawn) // 5)
        parts = [each for each in given["train"] if each not in drawn[:few]], drawn[:few], given["test"]
    train, validation, test = (tuple(sorted(part)) for part in parts)
    if lost := sorted(bare & {*validation, *test}):
        raise ValueError(message(f"labels of validation and test patients in {dataset.root}", f"none of {lost[:5]}"))
    able = tuple(patient for patient in train if patient not in bare)
    count = _count(labelled, len(able))
    order = [able[i] for i in rng.permutation(len(able))]
    if given is not None and seed == 0:
        order = _after_given(given, order)
        order = list(given.get(f"labelled_{count}", order))
    train = tuple(sorted({*train, *bare}))
    return Split(train, validation, test, tuple(sorted(order[:count])))


def _after_given(given: Mapping[str, tuple[str, ...]], order: list[str]) -> list[str]:
    """The given subsets first, the smallest foremost, so that other counts nest with them."""
    counts = sorted(int(key.removeprefix("labelled_")) for key in given if key.startswith("labelled_"))
    foremost = [patient for count in counts for patient in given[f"labelled_{count}"]]
    return list(dict.fromkeys([*foremost, *order]))


def _count(labelled: object, available: int) -> int:
    if isinstance(labelled, float):
        return max(1, round(number("labelled", labelled, above=0.0, most=1.0) * available))
    count = integer("labelled", labelled, least=1)
    if count > available:
        raise ValueError(message(f"`labelled` of at most {available}, the training patients", count))
    return count


def guard(split: Split, patients: Collection[str], stage: str, *, labels: bool) -> None:
    """Refuses what training must not see: every training stage asks here before it gets a slice.

    Args:
        split: who is for what.
        patients: the patients the stage is about to train on.
        stage: its name, for the message.
        labels: whether it sees their labels.

    Raises:
        LeakError: a patient is not of the training part, or is not labelled where `labels` are used.
    """
    for part, members in (("validation", split.validation), ("test", split.test)):
        if leaked := sorted(set(patients) & set(members)):
            raise LeakError(message(f"training patients in stage {stage!r}", f"{leaked} of the {part} part"))
    if strangers := sorted(set(patients) - set(split.train)):
        raise LeakError(message(f"training patients in stage {stage!r}", f"{strangers}, of no part of the split"))
    if labels and (leaked := sorted(set(patients) - set(split.labelled))):
        raise LeakError(message(f"labelled patients in stage {stage!r}", f"{leaked}, which are not labelled"))
