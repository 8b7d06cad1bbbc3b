"""The folders that are recognised: an MM-WHS tree, an MSD tree, and a raw data set of nnU-Net.

An MM-WHS tree is any folder with files like ``ct_train_1001_image.nii.gz`` and ``ct_train_1001_label.nii.gz``
somewhere below it; images alone, such as ``ct_test_2001_image.nii.gz``, serve the stages that need no label. The
others have a ``dataset.json``: that of MSD (Medical Segmentation Decathlon, nnU-Net v1) lists its files in
``training``; that of nnU-Net v2 has ``channel_names`` and leaves them to be found by their names. Images of
``imagesTs`` have no label, unless there is a ``labelsTs``: then they are not ours to train on.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from examples.mmwhs.data.patients import read_json
from examples.mmwhs.messages import message, one_of

MMWHS_NOTE = "MM-WHS 2017 (Zhuang et al., Medical Image Analysis 2019); by registration, not redistributable."
MMWHS_VALUES = {500: "LV", 600: "RV", 420: "LA", 550: "RA", 205: "MYO", 820: "AA", 850: "PA"}
MMWHS_FILE = re.compile(r"((ct|mr)_(?:train_1|test_2)\d\d\d)_(image|label)\.nii(?:\.gz)?")
NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Tree:
    """What a folder says: its files, an image and, where there is one, its label each; names by label value.

    `suffix` ends the names of images and is no part of those of cases; `ordered` says whether structures are sorted by
    value; `source` is what says so.
    """

    name: str
    source: Path
    structures: Mapping[int, str]
    files: list[tuple[Path, Path | None]]
    note: str
    suffix: str = ""
    ordered: bool = True
    fixes: Mapping[int, int] = field(default_factory=dict)


def recognise(root: Path, modality: str | None) -> Tree:
    """The tree below a folder.

    Raises:
        ValueError: It is none, or not whole, or holds several modalities and `modality` does not say which.
    """
    source = root / "dataset.json"
    if not source.is_file():
        return _mmwhs(root, modality)
    inside(root, source)
    content = read_json(source)
    if not isinstance(content, dict):
        raise ValueError(message(f"a JSON object in {source}", type(content).__name__))
    return _nnunet(source, content, modality) if "channel_names" in content else _msd(source, content, modality)


def extra(folders: Iterable[str | Path]) -> list[Path]:
    """The volumes anywhere below some folders, which have no label.

    Raises:
        ValueError: A folder is none, or there is no volume in it.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ValueError(message("an existing folder of unlabelled volumes", folder))
        volumes = sorted(path for path in folder.rglob("*.nii*") if is_volume(path))
        if not volumes:
            raise ValueError(message(f"volumes (.nii, .nii.gz) below {folder}", "none"))
        found += volumes
    return found


def is_volume(path: Path) -> bool:
    """Whether a path is of a NIfTI file; those that begin with a dot are what systems leave beside files."""
    return path.is_file() and path.name.endswith(NIFTI) and not path.name.startswith(".")


def _images_ts(root: Path, tail: str = "") -> list[tuple[Path, Path | None]]:
    """The images that come without labels with a data set."""
    if (root / "labelsTs").is_dir():
        return []
    found = sorted(p for p in (root / "imagesTs").glob("*.nii*") if is_volume(p) and stem(p).endswith(tail))
    for path in found:
        inside(root, path)
    return [(path, None) for path in found]


def stem(path: Path) -> str:
    """The name of a file without ``.nii.gz``."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def inside(root: Path, path: Path) -> None:
    """A file of a data set, whatever links lead to it, lies in its folder."""
    if not (real := path.resolve()).is_relative_to(root.resolve()):
        cure = "Put the file itself there, or give the folder that it lies in."
        raise ValueError(message(f"{path} to lie in the data folder {root}", f"a link to {real}", cure))


def _mmwhs(root: Path, modality: str | None) -> Tree:
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(root.rglob("*.nii*")):
        if (match := MMWHS_FILE.fullmatch(path.name)) and path.is_file():
            inside(root, path)
            case, _, kind = match.groups()
            if (files := found.setdefault(case, {})) and kind in files:
                got = f"{files[kind]} and {path}"
                raise ValueError(message(f"one {kind} of {case}", got, "Remove one of them."))
            files[kind] = path
    present = sorted({case[:2] for case in found})
    if not present:
        expected = "a dataset.json (MSD, nnU-Net) or files like ct_train_1001_image.nii.gz (MM-WHS)"
        cure = "A dataset.json is a few lines: see `Your own volumes` in docs/pipeline.md."
        raise ValueError(message(f"{expected} below {root}", "neither", cure))
    if modality is None and len(present) > 1:
        raise ValueError(message(f"one modality below {root}", " and ".join(present), "Choose with --modality ct."))
    modality = modality or present[0]
    one_of("modality", modality, present)
    pairs: list[tuple[Path, Path | None]] = []
    for _, files in sorted(item for item in found.items() if item[0].startswith(modality)):
        if "image" not in files:
            expected = f"a file like {files['label'].name.replace('label', 'image')} beside {files['label']}"
            raise ValueError(message(expected, "none"))
        pairs.append((files["image"], files.get("label")))
    return Tree(f"mmwhs_{modality}", root, MMWHS_VALUES, pairs, MMWHS_NOTE, "_image", ordered=False, fixes={421: 420})


def _msd(source: Path, content: Mapping[str, Any], modality: str | None) -> Tree:
    labels, training = content.get("labels"), content.get("training")
    if not isinstance(labels, dict) or not isinstance(training, list) or not training:
        expected = f"`labels` (a mapping) and `training` (a list of cases) in {source}"
        raise ValueError(message(expected, f"{labels!r:.60} and {training!r:.60}"))
    if modality is not None:
        raise ValueError(message(f"no `modality` for {source.parent}, which has a dataset.json", repr(modality)))
    values: dict[int, str] = {}
    for value, name in labels.items():
        if not (value.isdecimal() and int(value) < 2**15 and isinstance(name, str)):
            expected = f'`labels` like {{"0": "background", "1": "name"}} in {source}'
            raise ValueError(message(expected, f"{value!r}: {name!r}"))
        values[int(value)] = " ".join(name.split())
    values.pop(0, None)
    files = [_entry(source, entry) for entry in training]
    owner: dict[Path, Path] = {}
    for image, label in files:
        if label is not None and owner.setdefault(label, image) != image:
            got = f"{stem(owner[label])} and {stem(image)}"
            raise ValueError(message(f"one case with the label {label} in {source}", got))
    suffix = "_0000" if all(stem(image).endswith("_0000") for image, _ in files) else ""
    files += _images_ts(source.parent, suffix)
    return Tree(_name(source, content), source, values, files, _note(source, content), suffix)


def _nnunet(source: Path, content: Mapping[str, Any], modality: str | None) -> Tree:
    """nnU-Net v2: ``imagesTr/CASE_0000.nii.gz`` for its first channel, ``labelsTr/CASE.nii.gz``."""
    channels, labels, ending = content["channel_names"], content.get("labels"), content.get("file_ending", ".nii.gz")
    if not isinstance(channels, dict) or not isinstance(labels, dict) or ending not in NIFTI:
        expected = f"`channel_names` and `labels` (mappings) and a `file_ending` of NIfTI in {source}"
        raise ValueError(message(expected, f"{channels!r}, {labels!r} and {ending!r}"))
    values: dict[int, str] = {}
    for name, value in labels.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**15 or name == "ignore":
            cure = "Regions and labels to ignore are not read: write them as plain labels."
            raise ValueError(
                message(f'`labels` like {{"background": 0, "name": 1}} in {source}', f"{name}: {value}", cure)
            )
        if value in values:
            raise ValueError(message(f"every value once in `labels` of {source}", f"{values[value]!r} and {name!r}"))
        values[value] = " ".join(str(name).split())
    values.pop(0, None)
    if modality is None and len(channels) > 1:
        cure = f"Choose with --modality, by number or name: {', '.join(f'{k} {v}' for k, v in channels.items())}."
        raise ValueError(message(f"one channel in {source}", len(channels), cure))
    by_name = {**{str(name): key for key, name in channels.items()}, **{key: key for key in channels}}
    chosen = next(iter(channels)) if modality is None else modality
    one_of("modality", chosen, by_name)
    tail = f"_{int(by_name[chosen]):04d}{ending}"
    root = source.parent
    files: list[tuple[Path, Path | None]] = []
    for image in sorted((root / "imagesTr").glob(f"*{tail}")):
        label = root / "labelsTr" / f"{image.name.removesuffix(tail)}{ending}"
        for path in (image, label):
            inside(root, path)
        files.append((image, label if label.is_file() else None))
    if not files:
        raise ValueError(message(f"images like imagesTr/case{tail} beside {source}", "none"))
    suffix = tail.removesuffix(ending)
    files += _images_ts(root, suffix)
    return Tree(_name(source, content), source, values, files, _note(source, content), suffix)


def _name(source: Path, content: Mapping[str, Any]) -> str:
    return str(content.get("name") or source.resolve().parent.name)


def _note(source: Path, content: Mapping[str, Any]) -> str:
    licence = content.get("licence") or content.get("license") or "licence unknown"
    return f"{content.get('reference') or _name(source, content)}; {licence}"


def _entry(source: Path, entry: object) -> tuple[Path, Path | None]:
    """The files of a case of ``training``: a mapping with ``image`` and perhaps ``label``, or the path of an image."""
    named = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(named, dict) or not isinstance(named.get("image"), str):
        raise ValueError(message(f"`image` and `label` in every case of `training` in {source}", entry))
    label = named.get("label")
    return _file(source, named["image"]), None if label is None else _file(source, label)


def _file(source: Path, name: object) -> Path:
    relative = PurePosixPath(name) if isinstance(name, str) else None
    if relative is None or relative.is_absolute() or ".." in relative.parts or "\\" in str(name) or "\0" in str(name):
        raise ValueError(message(f"paths inside of the data folder in {source}", repr(name)))
    path = source.parent / relative
    if not path.is_file() and (first := path.with_name(f"{stem(path)}_0000{path.name[len(stem(path)) :]}")).is_file():
        path = first  # nnU-Net v1 lists cases, and its files have the number of their channel
        if len(list(path.parent.glob(f"{stem(path)[:-5]}_000?.nii*"))) > 1:
            cure = "Keep the channel to use alone, or write a dataset.json of nnU-Net v2."
            raise ValueError(message(f"one channel of {relative} in {source}", "several", cure))
    if not path.name.endswith(NIFTI) or not path.is_file():
        raise ValueError(message(f"the NIfTI file {path}, which dataset.json names", "no such file"))
    inside(source.parent, path)
    return path
