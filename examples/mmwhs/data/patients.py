"""Who is who: the patient of every case, by an explicit rule where there is one, and the parts that a file assigns.

A split is by patient. Where no rule says which cases are of one patient, each case counts as one, and names that
suggest otherwise are pointed out.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from examples.mmwhs.messages import message

PARTS = ("train", "val", "test")


def read_json(path: Path) -> Any:
    """What a JSON file of a data set holds."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(message(f"JSON in {path}", repr(str(error)))) from error


def by_rule(rule: str, cases: Collection[str]) -> dict[str, str]:
    """Case -> patient, by a regular expression: its first group, or all of it, found in the case's name.

    Raises:
        ValueError: It is none, or there is a case in which it is not found.
    """
    try:
        found = {case: re.search(rule, case) for case in cases}
    except re.error as error:
        raise ValueError(message("`patients` to be a regular expression", f"{rule!r} ({error})")) from error
    if lost := sorted(case for case, match in found.items() if not match or not "".join(match.groups("") or match[0])):
        got = f"none in {', '.join(lost[:5])}" + (", ..." if len(lost) > 5 else "")
        raise ValueError(message(f"a patient by {rule!r} in every case's name", got))
    return {case: match[1] if match.groups() else match[0] for case, match in found.items() if match}


def by_prefix(
    cases: Collection[str], patients: Collection[str], source: Path, *, strangers: Collection[str] = ()
) -> dict[str, str]:
    """Case -> the longest of these patients' names that begins the case's name and ends where a word does.

    One of `strangers`, which the file need not name, is of a patient of its own where it fits none.
    """
    found = {}
    for case in cases:
        fitting = [p for p in patients if case == p or (case.startswith(p) and not case[len(p)].isalnum())]
        if not fitting and case in strangers:
            fitting = [case]
        if not fitting:
            raise ValueError(message(f"a patient in {source} whose name begins {case!r}", "none"))
        found[case] = max(fitting, key=len)
    return found


def suspected(cases: Collection[str]) -> dict[str, list[str]]:
    """What may be patients with several cases, by names alone: what begins their names -> the cases.

    Names are cut before their last words and numbers until some of them share what is left, but not most: of
    ``p01_t1, p01_t2, p02_t1, ...`` that is ``p01``; ``case_1, case_2, ...`` share nothing else.
    """
    words = {case: [m.end() for m in re.finditer(r"\d+|[^\W\d_]+", case)] for case in cases}
    for dropped in range(1, max((len(each) for each in words.values()), default=1)):
        groups = defaultdict(list)
        for case, ends in words.items():
            groups[case[: ends[max(0, len(ends) - 1 - dropped)]] if ends else case].append(case)
        several = {start: sorted(each) for start, each in groups.items() if len(each) > 1}
        most = max(map(len, groups.values()))
        if several and len(groups) > 1 and most <= max(2, len(cases) / 3):
            return several
    begins = {
        case: sorted([case, *(each for each in cases if each.startswith(case) and not each[len(case) :][:1].isalnum())])
        for case in cases
    }  # p01 and p01_b
    return {case: sorted(set(each)) for case, each in begins.items() if len(set(each)) > 1}


def warning(cases: Collection[str]) -> list[str]:
    """A sentence where names suggest several cases of one patient."""
    if not (several := suspected(cases)):
        return []
    start, each = next(iter(sorted(several.items())))
    stem = re.match(r"(.*?\d+|.+)", start)
    rule = re.sub(r"\d+", r"\\d+", re.escape(stem[0] if stem else start))
    return [
        f"WARNING: every volume counts as a patient, but names suggest several of one: {', '.join(each[:3])}. If so, "
        f"their like lands on both sides of the split: say who is who, for instance --patients '({rule})'."
    ]


def given_split(path: Path, fold: int = 0) -> dict[str, tuple[str, ...]]:
    """The parts that a file assigns, as names of cases or patients.

    A mapping with ``train``, ``val``, ``test`` and subsets called ``labelled_N``; or nnU-Net's ``splits_final.json``, a
    list of folds with ``train`` and ``val``: that ``val`` becomes ``test``, since nothing else is held out, and the
    patients that choose weights are drawn from ``train``.
    """
    content = read_json(path)
    if not content or (isinstance(content, dict) and fold):
        got = "nothing" if not content else f"one split and not folds, of which to take number {fold}"
        raise ValueError(message(f"a split, or a list of folds, in {path}", got))
    if isinstance(content, list):
        if not 0 <= fold < len(content):
            raise ValueError(message(f"a fold from 0 to {len(content) - 1} in {path}", fold))
        content = content[fold]
        if not isinstance(content, dict) or set(content) != {"train", "val"}:
            raise ValueError(message(f"`train` and `val` in every fold of {path}", content))
        content, needed = {"train": content["train"], "test": content["val"]}, ("train", "test")
    elif isinstance(content, dict):
        needed = PARTS
    else:
        raise ValueError(message(f"a JSON object in {path}", type(content).__name__))
    given: dict[str, tuple[str, ...]] = {}
    for key, names in content.items():
        if key not in PARTS and not re.fullmatch(r"labelled_\d+", key):
            continue  # a note
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(message(f"`{key}` to be a list of patients in {path}", names))
        if not names or len(set(names)) != len(names):
            raise ValueError(message(f"one or more patients in `{key}` of {path}, each once", names))
        given[key] = tuple(name.removesuffix(".gz").removesuffix(".nii") for name in names)
    for key in needed:
        if key not in given:
            raise ValueError(message(f"{', '.join(f'`{part}`' for part in needed)} in {path}", f"no `{key}`"))
    return given


def by_patient(
    given: Mapping[str, Sequence[str]],
    patient_of: Mapping[str, str],
    source: Path,
    *,
    strangers: Collection[str] = (),
) -> dict[str, tuple[str, ...]]:
    """The parts of a file as patients, every patient in one of them but those who have no other case than `strangers`.

    Raises:
        ValueError: A name is of no case, a patient is in two parts or in none, or ``labelled_N`` is not N of ``train``.
    """
    patients = set(patient_of.values())
    parts = {key: tuple(dict.fromkeys(patient_of.get(n, n) for n in names)) for key, names in given.items()}
    if unknown := sorted({patient for part in parts.values() for patient in part} - patients):
        cure = f"Cases are called {', '.join(sorted(patient_of)[:3])}, ..."
        raise ValueError(message(f"cases of every patient in {source}", f"none of {', '.join(unknown[:5])}", cure))
    for one, other in combinations([part for part in PARTS if part in parts], 2):
        if shared := set(parts[one]) & set(parts[other]):
            raise ValueError(message(f"no patient in both `{one}` and `{other}` of {source}", sorted(shared)))
    needed = {patient for case, patient in patient_of.items() if case not in strangers}
    if lost := sorted(needed - {patient for part in PARTS for patient in parts.get(part, ())}):
        raise ValueError(message(f"every patient in a part of {source}", f"no {', '.join(lost[:5])}"))
    for key, names in parts.items():
        if key.startswith("labelled_"):
            count = int(key.removeprefix("labelled_"))
            if len(names) != count or not set(names) <= set(parts["train"]):
                raise ValueError(message(f"`{key}` to be {count} patients of `train` in {source}", names))
    return parts
