"""What a data set is, and how a folder of volumes becomes one.

:mod:`examples.mmwhs.data.trees` recognises folders, :mod:`examples.mmwhs.data.patients` says who is who. Names and
headers are read here, voxels in :mod:`examples.mmwhs.data.volumes`.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.mmwhs.data import patients as who
from examples.mmwhs.data import trees
from examples.mmwhs.data.description import PLANES, UNKNOWN, Case, Description
from examples.mmwhs.data.volumes import open_grid
from examples.mmwhs.messages import message, number, one_of


@dataclass(frozen=True)
class Reading:
    """How a folder is read, where it does not say so itself.

    Attributes:
        modality: Of several in one tree: ``ct`` or ``mr`` of MM-WHS, a channel of nnU-Net by name or number.
        patients: A regular expression whose first group, or all of it, is the patient in a case's name.
        split: A file like ``splits.json`` or nnU-Net's ``splits_final.json``, or a fold of one as ``FILE:2`` or ``2``.
        planes: The planes to slice, the first of them that in which networks are evaluated.
        rotation: Augmentation turns slices at least so many degrees either way.
        flip: Augmentation mirrors slices with this probability.
        unlabelled: Folders of further volumes, which have no label.
    """

    modality: str | None = None
    patients: str | None = None
    split: str | None = None
    planes: list[str] | None = None
    rotation: float | None = None
    flip: float | None = None
    unlabelled: list[str] | None = None


@dataclass(frozen=True)
class Dataset:
    """Cases and their description.

    Attributes:
        root: The folder.
        description: What it holds.
        cases: By id.
        given_split: What a file of splits says, patients by subset.
        notes: What a reader should know before anything is trained: a line each.
    """

    root: Path
    description: Description
    cases: tuple[Case, ...]
    given_split: Mapping[str, tuple[str, ...]] | None = None
    notes: tuple[str, ...] = ()

    @property
    def patients(self) -> tuple[str, ...]:
        """Every patient once, in alphabetical order."""
        return tuple(sorted({case.patient for case in self.cases}))

    @property
    def unlabelled(self) -> frozenset[str]:
        """Patients of whom no case has a label."""
        return frozenset(self.patients) - {case.patient for case in self.cases if case.label is not None}

    def cases_of(self, patients: Collection[str], *, labels: bool = False) -> tuple[Case, ...]:
        """The cases of these patients, in the order of the data set; with `labels`, those that have one."""
        return tuple(c for c in self.cases if c.patient in patients and not (labels and c.label is None))


# What cannot be read of the sets that are known by name.
KNOWN: Mapping[str, Mapping[str, Any]] = {
    "mmwhs_ct": {"slice_size": 160, "planes": PLANES},
    "mmwhs_mr": {"slice_size": 160, "planes": PLANES},
    "hippocampus": {
        "slice_size": 64,
        "planes": PLANES,
        "note": "Medical Segmentation Decathlon, Task 04 (Antonelli et al., Nature Communications 2022), CC BY-SA 4.0; "
        "both sides of one person may be in it, so a split by volume may not be a split by person.",
    },
    "acdc": {
        "slice_size": 96,
        "crop": 0.7,  # holds every label with a margin
        "rotation": 90.0,  # some patients are stored portrait, their hearts 65 degrees from the others
        "planes": ("transaxial",),
        "note": "ACDC (Bernard et al., IEEE TMI 2018), CC BY-NC-SA 4.0; slices lie along the short axis of the heart.",
    },
}
PATIENTS = {"acdc": r"^(patient\d+)_"}  # two frames of each


def open_dataset(
    root: str | Path,
    *,
    modality: str | None = None,
    patients: str | None = None,
    split: str | None = None,
    planes: Sequence[str] | None = None,
    rotation: float | None = None,
    flip: float | None = None,
    unlabelled: Sequence[str] | None = None,
) -> Dataset:
    """Recognises the tree below `root` and lists its cases; the options are those of `Reading`.

    Raises:
        ValueError: the folder is no tree, or something in it is missing, doubled or outside of it, or has several
            meanings; the message names it and, where there is one, the option that decides.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(message("an existing data folder", root))
    tree = trees.recognise(root, modality)
    if not 0 < len(tree.structures) < UNKNOWN:
        expected = f"1 to {UNKNOWN - 1} structures in `labels` of {tree.source}"
        raise ValueError(message(expected, len(tree.structures)))
    source, given = _split_file(root, split)
    known = tree.name.lower()
    ids = _ids(root, tree)
    further = trees.extra(unlabelled or ())
    more = _further_ids(further, tree.suffix, ids)
    rule = patients
    if rule is None and known in PATIENTS and all(re.search(PATIENTS[known], i) for i in ids):
        rule = PATIENTS[known]
    bare = {case for case, (_, label) in zip(ids, tree.files, strict=True) if label is None} | set(more)
    named = [p for part in who.PARTS for p in (given or {}).get(part, ())]
    if rule is not None:
        # One that is the data set's own says nothing of further volumes, or that they are of its patients.
        own = ids if patients is None else [*ids, *more]
        patient_of = {case: case for case in more} | who.by_rule(rule, own)
        patient_of |= {case: match[1] for case in more if patients is None and (match := re.search(rule, case))}
    elif given is not None and "val" in given:
        patient_of = who.by_prefix([*ids, *more], named, source, strangers=bare)
    else:
        patient_of = {case: case for case in [*ids, *more]}
    split_by_patient = None if given is None else who.by_patient(given, patient_of, source, strangers=bare)
    sure = rule is not None or "val" in (given or {}) or known.startswith("mmwhs")
    notes = [] if sure else who.warning([*ids, *more])
    files = [*tree.files, *((path, None) for path in further)]
    cases = [Case(i, patient_of[i], *pair) for i, pair in zip([*ids, *more], files, strict=True)]
    options, said = _slicing(cases, planes, KNOWN.get(known, {}))
    options.setdefault("note", tree.note)
    for name, value, most in (("rotation", rotation, 180.0), ("flip", flip, 1.0)):
        if value is not None:
            options[name] = number(name, value, least=0.0, most=most)
    ordered = sorted(tree.structures.items()) if tree.ordered else list(tree.structures.items())
    description = Description(
        tree.name, tuple(n for _, n in ordered), tuple(v for v, _ in ordered), fixes=tree.fixes, **options
    )  # fmt: skip
    notes += said + ([f"{len(bare)} volumes have no label: they serve the stages that need none."] if bare else [])
    if given is not None:
        notes.append(f"The split is that of {source}.")
    return Dataset(root, description, tuple(sorted(cases, key=lambda c: c.id)), split_by_patient, tuple(notes))


def _split_file(root: Path, split: str | None) -> tuple[Path, dict[str, tuple[str, ...]] | None]:
    """The file of splits, and what its fold says."""
    name, _, fold = (split or "").rpartition(":")
    if split and not fold.isdecimal():
        name, fold = split, "0"
    if not name:
        found = [root / each for each in ("splits.json", "splits_final.json") if (root / each).exists()]
        if not found and split:
            raise ValueError(
                message(f"a splits.json or splits_final.json in {root}", "none", "Give --split FILE:FOLD.")
            )
        if not found:
            return root, None
        trees.inside(root, found[0])
        path = found[0]
    else:
        path = Path(name)
    if not path.is_file():
        raise ValueError(message(f"the file of splits {path}", "no such file"))
    return path, who.given_split(path, int(fold or 0))


def _ids(root: Path, tree: trees.Tree) -> list[str]:
    """A name for every case: that of its file or, where two are alike, with the folders that tell them apart."""
    source = tree.source
    if twice := [path for path, count in Counter(image for image, _ in tree.files).items() if count > 1]:
        raise ValueError(message(f"every case once in {source}", f"{twice[0]} and {twice[0]}"))
    parts = [
        (*path.relative_to(root).parent.parts, trees.stem(path).removesuffix(tree.suffix)) for path, _ in tree.files
    ]
    ids = [each[-1] for each in parts]
    if len(set(ids)) != len(ids):
        alike = {i for i in range(min(map(len, parts))) if len({each[i] for each in parts}) == 1}
        ids = ["_".join(part for i, part in enumerate(each) if i not in alike) for each in parts]
    if twice := [each for each, count in Counter(ids).items() if count > 1]:
        raise ValueError(message(f"names of files that tell cases apart in {source}", f"{twice[0]!r} twice"))
    return ids


def _further_ids(paths: Sequence[Path], suffix: str, taken: Sequence[str]) -> list[str]:
    """A name for every further volume: that of its file, with as many folders before it as it takes to be its own."""
    if twice := [path for path, times in Counter(path.resolve() for path in paths).items() if times > 1]:
        raise ValueError(message("every unlabelled volume once", f"{twice[0]} and {twice[0]}"))
    names = [trees.stem(path).removesuffix(suffix) for path in paths]
    for depth in range(2, max((len(path.resolve().parts) for path in paths), default=0)):
        count = Counter([*names, *taken])
        longer = ["_".join(path.resolve().parts[-depth:-1]) for path in paths]
        names = [
            f"{folders}_{trees.stem(path).removesuffix(suffix)}" if count[name] > 1 else name
            for path, name, folders in zip(paths, names, longer, strict=True)
        ]
    return names


def _slicing(
    cases: Sequence[Case], planes: Sequence[str] | None, known: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Planes and slice size from the headers of the images with labels, most of which decide, and of all who differs.

    Three planes for near-cubic voxels; else the plane across the coarsest axis.
    """
    grids = [open_grid(case.image) for case in cases]
    decides = np.array([case.label is not None for case in cases])
    if not decides.any():
        decides[:] = True
    votes = []
    for grid in grids:
        cubic = grid.spacing.max() <= 2 * grid.spacing.min()
        votes.append(PLANES if cubic else (PLANES[int(grid.spacing.argmax())],))
    (chosen, count), *_ = Counter(v for v, d in zip(votes, decides, strict=True) if d).most_common(1)
    notes = []
    if planes is not None:
        for plane in planes:
            one_of("planes", plane, PLANES)
        if not planes or len(set(planes)) != len(planes):
            raise ValueError(message("`planes` to name one or more planes, each once", list(planes)))
        chosen = tuple(plane for plane in PLANES if plane in planes)
    elif "planes" in known:
        chosen = known["planes"]
    elif count < len(cases):
        odd = [case.id for case, vote in zip(cases, votes, strict=True) if vote != chosen]
        notes.append(f"{_some(odd)} would be sliced in other planes, by the shape of their voxels, than the "
                     f"{', '.join(chosen)} of most; --planes decides.")  # fmt: skip
    main = planes[0] if planes else "transaxial" if "transaxial" in chosen else chosen[0]
    within = [i for i, plane in enumerate(PLANES) if chosen != (plane,)]
    longest = np.array([max(grid.shape[i] for i in within) for grid in grids])
    field_of_view = np.array([max(grid.shape[i] * grid.spacing[i] for i in within) for grid in grids])
    for what, values in (("voxels", longest), ("millimetres", field_of_view)):
        middle = float(np.median(values[decides]))
        if odd := [c.id for c, v in zip(cases, values, strict=True) if not middle / 2 <= v <= 2 * middle]:
            notes.append(f"{_some(odd)} are unlike the others: more than twice or less than half of {middle:g} {what} "
                         f"across a slice, as is usual here.")  # fmt: skip
    sixteens = -(-int(np.median(longest[decides])) // 16) * 16  # a network that halves four times needs multiples of 16
    return {"slice_size": min(160, sixteens), **known, "planes": chosen, "main_plane": main}, notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
