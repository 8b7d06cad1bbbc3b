"""What a data set is, and how a folder of volumes becomes one: an MM-WHS tree or an MSD tree.

An MM-WHS tree is any folder with files like ``ct_train_1001_image.nii.gz`` and ``ct_train_1001_label.nii.gz``
somewhere below it. An MSD tree (Medical Segmentation Decathlon) has a ``dataset.json`` with ``labels`` and
``training``; a ``splits.json`` beside it, with the patients of ``train``, ``val`` and ``test`` and of subsets
called ``labelled_N``, is honoured. Names and headers are read here, voxels in :mod:`examples.mmwhs.data.volumes`.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from examples.mmwhs.data.volumes import PLANES, UNKNOWN, Volume, load_volume, open_grid
from examples.mmwhs.messages import message, one_of

__all__ = ["PLANES", "Case", "Dataset", "Description", "Volume", "load_volume", "open_dataset"]


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
    fixes: Mapping[int, int] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Case:
    """One volume of one patient: its files."""

    id: str
    patient: str
    image: Path
    label: Path | None


@dataclass(frozen=True)
class Dataset:
    """Cases and their description; `given_split` is what a ``splits.json`` says, patients by subset."""

    root: Path
    description: Description
    cases: tuple[Case, ...]
    given_split: Mapping[str, tuple[str, ...]] | None = None

    @property
    def patients(self) -> tuple[str, ...]:
        """Every patient once, in alphabetical order."""
        return tuple(sorted({case.patient for case in self.cases}))

    def cases_of(self, patients: Collection[str]) -> tuple[Case, ...]:
        """The cases of these patients, in the order of the data set."""
        return tuple(case for case in self.cases if case.patient in patients)


MMWHS_NOTE = "MM-WHS 2017 (Zhuang et al., Medical Image Analysis 2019); by registration, not redistributable."
MMWHS_VALUES = {"LV": 500, "RV": 600, "LA": 420, "RA": 550, "MYO": 205, "AA": 820, "PA": 850}
MMWHS_FILE = re.compile(r"((ct|mr)_train_1\d\d\d)_(image|label)\.nii(?:\.gz)?")

# What a dataset.json cannot say about the sets that are known by name.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "hippocampus": {
        "slice_size": 64,
        "planes": PLANES,
        "note": "Medical Segmentation Decathlon, Task 04 (Antonelli et al., Nature Communications 2022), "
        "CC BY-SA 4.0; "
        "both sides of one person may be in it, so a split by volume may not be a split by person.",
    },
    "acdc": {
        "slice_size": 96,
        "crop": 0.7,  # holds every label with a margin
        "planes": ("transaxial",),
        "note": "ACDC (Bernard et al., IEEE TMI 2018), CC BY-NC-SA 4.0; slices lie along the short axis of the heart.",
    },
}


def open_dataset(root: str | Path, *, modality: str | None = None) -> Dataset:
    """Recognises the tree below `root` and lists its cases.

    Args:
        root: the folder of an MM-WHS tree or an MSD tree.
        modality: ``"ct"`` or ``"mr"`` of an MM-WHS tree; None takes the only one there is, and CT of both.

    Raises:
        ValueError: the folder is neither, or something in it is missing, doubled or outside of it.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(message("an existing data folder", root))
    if (root / "dataset.json").is_file():
        if modality is not None:
            raise ValueError(message(f"no `modality` for {root}, which has a dataset.json", repr(modality)))
        return _open_msd(root)
    return _open_mmwhs(root, modality)


def _open_mmwhs(root: Path, modality: str | None) -> Dataset:
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("*.nii*")):
        if (match := MMWHS_FILE.fullmatch(path.name)) and path.is_file():
            _inside(root, path)
            case, _, kind = match.groups()
            _once(found.setdefault(case, {}), kind, path, case)
    present = sorted({case[:2] for case in found})
    if not present:
        expected = "a dataset.json (MSD) or files like ct_train_1001_image.nii.gz (MM-WHS)"
        raise ValueError(message(f"{expected} below {root}", "neither"))
    modality = modality or present[0]
    one_of("modality", modality, present)
    cases = []
    for case, files in sorted(found.items()):
        if case.startswith(modality):
            for kind, other in (("image", "label"), ("label", "image")):
                if kind not in files:
                    expected = f"{files[other].name.replace(other, kind)} beside {files[other]}"
                    raise ValueError(message(f"a file like {expected}", "none"))
            cases.append(Case(case, case, files["image"], files["label"]))
    names, values = tuple(MMWHS_VALUES), tuple(MMWHS_VALUES.values())
    description = Description(f"mmwhs_{modality}", names, values, fixes={421: 420}, note=MMWHS_NOTE)
    return Dataset(root, description, tuple(cases))


def _once(files: dict[str, Path], key: str, path: Path, what: str) -> None:
    if key in files:
        raise ValueError(message(f"one {key} of {what}", f"{files[key]} and {path}", "Remove one of them."))
    files[key] = path


def _open_msd(root: Path) -> Dataset:
    source = root / "dataset.json"
    _inside(root, source)
    content = _json(source)
    labels, training = content.get("labels"), content.get("training")
    if not isinstance(labels, dict) or not isinstance(training, list) or not training:
        expected = f"`labels` (a mapping) and `training` (a list of cases) in {source}"
        raise ValueError(message(expected, f"the keys {sorted(content)}"))
    values = {}
    for value, name in labels.items():
        if not (value.isdecimal() and int(value) < 2**15 and isinstance(name, str)):
            expected = f'`labels` like {{"0": "background", "1": "name"}} in {source}'
            raise ValueError(message(expected, f"{value!r}: {name!r}"))
        values[int(value)] = name
    values.pop(0, None)
    if not 0 < len(values) < UNKNOWN:
        raise ValueError(message(f"1 to {UNKNOWN - 1} structures in `labels` of {source}", len(values)))
    files = [_msd_files(root, entry) for entry in training]
    given = _given_split(root / "splits.json")
    cases: dict[str, Case] = {}
    labelled_by: dict[Path, str] = {}
    for image, label in files:
        case = Case(image.name.removesuffix(".gz").removesuffix(".nii"), "", image, label)
        if case.id in cases:
            raise ValueError(message(f"every case once in {source}", f"{cases[case.id].image} and {image}"))
        if label in labelled_by:
            raise ValueError(
                message(f"one case with the label {label} in {source}", f"{labelled_by[label]} and {case.id}")
            )
        labelled_by[label] = case.id
        patient = case.id if given is None else _patient_of(case.id, given, root / "splits.json")
        cases[case.id] = Case(case.id, patient, image, label)
    if given is not None:
        _no_strangers(given, {case.patient for case in cases.values()}, root / "splits.json")
    name = str(content.get("name") or root.resolve().name)
    licence = content.get("licence") or content.get("license") or "licence unknown"
    note = f"{content.get('reference') or name}; {licence}"
    ordered = sorted(values)
    classes = tuple(values[value] for value in ordered)
    options = KNOWN.get(name.lower()) or {"note": note, **_slicing(files[0][0])}
    main = "transaxial" if "transaxial" in options["planes"] else options["planes"][0]
    description = Description(name, classes, tuple(ordered), main_plane=main, **options)
    return Dataset(root, description, tuple(cases[key] for key in sorted(cases)), given)


def _inside(root: Path, path: Path) -> None:
    """A file of a data set, whatever links lead to it, lies in its folder."""
    if not (real := path.resolve()).is_relative_to(root.resolve()):
        cure = "Put the file itself there, or give the folder that it lies in."
        raise ValueError(message(f"{path} to lie in the data folder {root}", f"a link to {real}", cure))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(message(f"JSON in {path}", repr(str(error)))) from error
    if not isinstance(content, dict):
        raise ValueError(message(f"a JSON object in {path}", type(content).__name__))
    return content


def _msd_files(root: Path, entry: object) -> tuple[Path, Path]:
    files = []
    for key in ("image", "label"):
        name = entry.get(key) if isinstance(entry, dict) else None
        if not isinstance(name, str):
            expected = f"`image` and `label` in every case of `training` in {root / 'dataset.json'}"
            raise ValueError(message(expected, entry))
        relative = PurePosixPath(name)
        if relative.is_absolute() or ".." in relative.parts or "\\" in name or "\0" in name:
            raise ValueError(message(f"paths inside of the data folder in {root / 'dataset.json'}", repr(name)))
        path = root / relative
        if not path.name.endswith((".nii", ".nii.gz")) or not path.is_file():
            raise ValueError(message(f"the NIfTI file {path}, which dataset.json names", "no such file"))
        _inside(root, path)
        files.append(path)
    return files[0], files[1]


def _given_split(path: Path) -> dict[str, tuple[str, ...]] | None:
    """``splits.json``: train, val and test share no patient; every ``labelled_N`` is N patients of train."""
    if not path.exists():
        return None
    _inside(path.parent, path)
    content = _json(path)
    given = {}
    for key, patients in content.items():
        if key not in ("train", "val", "test") and not re.fullmatch(r"labelled_\d+", key):
            continue  # a note
        if not isinstance(patients, list) or not all(isinstance(patient, str) for patient in patients):
            raise ValueError(message(f"`{key}` to be a list of patients in {path}", patients))
        if not patients or len(set(patients)) != len(patients):
            raise ValueError(message(f"one or more patients in `{key}` of {path}, each once", patients))
        given[key] = tuple(patients)
    for key in ("train", "val", "test"):
        if key not in given:
            raise ValueError(message(f"`train`, `val` and `test` in {path}", f"no `{key}`"))
    for one, other in combinations(("train", "val", "test"), 2):
        if shared := set(given[one]) & set(given[other]):
            raise ValueError(message(f"no patient in both `{one}` and `{other}` of {path}", sorted(shared)))
    for key, patients in given.items():
        if key.startswith("labelled_"):
            count = int(key.removeprefix("labelled_"))
            if len(patients) != count or not set(patients) <= set(given["train"]):
                raise ValueError(message(f"`{key}` to be {count} patients of `train` in {path}", patients))
    return given


def _patient_of(case: str, given: Mapping[str, tuple[str, ...]], source: Path) -> str:
    """The longest patient's name that begins the case's name and ends where a word does."""
    patients = [patient for key in ("train", "val", "test") for patient in given[key]]
    fitting = [p for p in patients if case == p or (case.startswith(p) and not case[len(p)].isalnum())]
    if not fitting:
        raise ValueError(message(f"a patient in {source} whose name begins {case!r}", "none"))
    return max(fitting, key=len)


def _no_strangers(given: Mapping[str, tuple[str, ...]], patients: set[str], source: Path) -> None:
    strangers = sorted({patient for subset in given.values() for patient in subset} - patients)
    if strangers:
        raise ValueError(message(f"cases of every patient in {source}", f"none of {', '.join(strangers[:5])}"))


def _slicing(path: Path) -> dict[str, Any]:
    """Planes and slice size of an unknown set, from one header: three planes for near-cubic voxels."""
    grid = open_grid(path)
    cubic = grid.spacing.max() <= 2 * grid.spacing.min()
    coarsest = int(grid.spacing.argmax())
    longest = max(size for axis, size in enumerate(grid.shape) if cubic or axis != coarsest)
    sixteens = -(-longest // 16) * 16  # a network that halves four times needs multiples of 16
    return {"planes": PLANES if cubic else (PLANES[coarsest],), "slice_size": min(160, sixteens)}
