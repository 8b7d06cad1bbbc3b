"""Splits by patient, and the guard: what training may see."""

import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.mmwhs.data.datasets import Dataset
from examples.mmwhs.data.description import Case, Description
from examples.mmwhs.data.splits import LeakError, Split, guard, make_split

SPLIT = Split(("a", "b", "c"), ("d",), ("e",), ("b",))
SEEDS = st.integers(0, 1000)


def dataset(patients: int, *, volumes: int = 1, given: Mapping[str, tuple[str, ...]] | None = None) -> Dataset:
    names = [f"p{i:03}" for i in range(patients)]
    cases = tuple(
        Case(f"{name}_{v}", name, Path(f"{name}_{v}"), Path("label")) for name in names for v in range(volumes)
    )
    return Dataset(Path("somewhere"), Description("x", ("one",), (1,)), cases, given)


GIVEN = {
    "train": tuple(f"p{i:03}" for i in range(12)),
    "val": ("p012", "p013"),
    "test": ("p014", "p015", "p016"),
    "labelled_2": ("p005", "p001"),
    "labelled_4": ("p005", "p001", "p011", "p000"),
}


@given(patients=st.integers(3, 120), volumes=st.integers(1, 3), seed=SEEDS)
def test_parts_are_disjoint_cover_all_and_are_two_to_one_to_one(patients: int, volumes: int, seed: int) -> None:
    data = dataset(patients, volumes=volumes)
    split = make_split(data, labelled=1, seed=seed)
    parts = (split.train, split.validation, split.test)
    assert sorted(sum(parts, ())) == list(data.patients)
    for part, share in zip(parts, (0.5, 0.25, 0.25), strict=True):
        assert abs(len(part) - share * patients) < 1
    if patients % 4 == 0:
        assert [len(part) for part in parts] == [patients // 2, patients // 4, patients // 4]


def test_the_split_of_the_paper() -> None:
    for fraction, count in ((0.1, 1), (0.2, 2), (0.4, 4)):
        split = make_split(dataset(20), labelled=fraction, seed=0)
        assert [len(p) for p in (split.train, split.validation, split.test, split.labelled)] == [10, 5, 5, count]


@given(patients=st.integers(3, 60), seed=SEEDS, small=st.floats(0.001, 1), large=st.floats(0.001, 1), own=st.booleans())
def test_a_smaller_labelled_subset_lies_in_a_larger_one(
    patients: int, seed: int, small: float, large: float, own: bool
) -> None:
    small, large = sorted((small, large))
    data = dataset(17, given=GIVEN) if own else dataset(patients)
    few, many = (make_split(data, labelled=fraction, seed=seed) for fraction in (small, large))
    assert set(few.labelled) <= set(many.labelled) <= set(many.train)
    assert (few.train, few.validation, few.test) == (many.train, many.validation, many.test)
    assert len(many.labelled) == max(1, round(large * len(many.train)))


@given(seed=SEEDS, patients=st.integers(8, 40))
def test_a_seed_says_it_all(seed: int, patients: int) -> None:
    data = dataset(patients)
    assert make_split(data, labelled=0.4, seed=seed) == make_split(data, labelled=0.4, seed=seed)
    shuffled = Dataset(data.root, data.description, data.cases[::-1])
    assert make_split(shuffled, labelled=0.4, seed=seed) == make_split(data, labelled=0.4, seed=seed)


def test_seeds_differ_in_parts_and_in_labelled_patients() -> None:
    splits = [make_split(dataset(40), labelled=2, seed=seed) for seed in range(20)]
    assert len({split.test for split in splits}) == 20
    assert len({split.labelled for split in splits}) > 15
    ours = [make_split(dataset(17, given=GIVEN), labelled=1, seed=seed) for seed in range(1, 200)]
    assert {split.labelled for split in ours} == {(patient,) for patient in GIVEN["train"]}


def test_a_count_and_a_fraction_are_told_apart_by_type() -> None:
    data = dataset(20)
    assert len(make_split(data, labelled=1, seed=0).labelled) == 1
    everybody = make_split(data, labelled=1.0, seed=0)
    assert everybody.labelled == everybody.train
    assert make_split(data, labelled=10, seed=0) == everybody
    assert make_split(data, labelled=0.2, seed=3) == make_split(data, labelled=2, seed=3)


@pytest.mark.parametrize(
    ("labelled", "error", "reason"),
    [
        (0, ValueError, "`labelled` to be an integer of at least 1, got 0"),
        (-1, ValueError, "at least 1, got -1"),
        (0.0, ValueError, r"above 0 and at most 1, got 0\.0"),
        (1.5, ValueError, r"above 0 and at most 1, got 1\.5"),
        (math.nan, ValueError, "got nan"),
        (11, ValueError, "`labelled` of at most 10, the training patients, got 11"),
        (True, TypeError, "`labelled` to be an integer"),
        ("0.2", TypeError, "`labelled` to be an integer"),
    ],
)
def test_labelled_is_a_fraction_or_a_count(labelled, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        make_split(dataset(20), labelled=labelled, seed=0)


def test_too_few_patients_and_a_wrong_seed() -> None:
    with pytest.raises(ValueError, match=r"at least 3 patients with labels in somewhere to split, got 2 of 2"):
        make_split(dataset(2, volumes=9), labelled=1, seed=0)
    with pytest.raises(ValueError, match="`seed`"):
        make_split(dataset(9), labelled=1, seed=-1)


@given(seed=SEEDS, labelled=st.integers(1, 12))
def test_a_given_split_is_kept(seed: int, labelled: int) -> None:
    split = make_split(dataset(17, given=GIVEN), labelled=labelled, seed=seed)
    assert (split.train, split.validation, split.test) == (GIVEN["train"], GIVEN["val"], GIVEN["test"])
    assert len(split.labelled) == labelled


def test_a_given_labelled_subset_is_that_of_seed_0() -> None:
    data = dataset(17, given=GIVEN)
    for labelled in (2, 4, 4 / 12):
        split = make_split(data, labelled=labelled, seed=0)
        assert set(split.labelled) == set(GIVEN[f"labelled_{len(split.labelled)}"])
    assert any(set(make_split(data, labelled=2, seed=s).labelled) != {"p005", "p001"} for s in range(1, 5))
    drawn = [set(make_split(data, labelled=count, seed=0).labelled) for count in range(1, 13)]
    assert all(few < many for few, many in pairwise(drawn))
    apart = {**GIVEN, "labelled_4": ("p007", "p008", "p009", "p010")}  # not nested: still taken as given
    assert make_split(dataset(17, given=apart), labelled=4, seed=0).labelled == apart["labelled_4"]


def test_a_split_is_written_and_read(tmp_path: Path) -> None:
    SPLIT.save(tmp_path / "split.json")
    assert Split.load(tmp_path / "split.json") == SPLIT
    assert json.loads((tmp_path / "split.json").read_text())["labelled"] == ["b"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "Expected a split with the lists train"),
        ('{"train": ["a"]}', "KeyError: 'validation'"),
        ("[]", "TypeError"),
        ('{"train": ["a"], "validation": ["b"], "test": ["a"], "labelled": ["a"]}', r"got \['a'\] more than once"),
        (
            '{"train": ["a"], "validation": ["b"], "test": ["c"], "labelled": ["b"]}',
            r"labelled patients .* got \['b'\]",
        ),
        (
            '{"train": ["a"], "validation": [], "test": ["c"], "labelled": ["a"]}',
            "in `validation` of a split, got none",
        ),
        (
            '{"train": [1], "validation": ["b"], "test": ["c"], "labelled": [1]}',
            r"`train` to be a list of patients in .* got \[1\]",
        ),
        ('{"train": "ab", "validation": ["c"], "test": ["d"], "labelled": ["a"]}', "`train` to be a list of patients"),
    ],
)
def test_a_split_that_was_changed_by_hand(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        Split.load(tmp_path / "split.json")


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize(("patient", "part"), [("d", "validation"), ("e", "test")])
def test_the_guard_refuses_validation_and_test_patients_even_unlabelled(patient: str, part: str, labels: bool) -> None:
    with pytest.raises(LeakError, match=rf"in stage 'global', got \['{patient}'\] of the {part} part"):
        guard(SPLIT, ["b", patient], "global", labels=labels)


def test_the_guard_refuses_the_labels_of_unlabelled_patients() -> None:
    with pytest.raises(LeakError, match=r"labelled patients in stage 'local', got \['a', 'c'\]"):
        guard(SPLIT, ["c", "a", "b"], "local", labels=True)


def test_the_guard_refuses_strangers() -> None:
    with pytest.raises(LeakError, match=r"got \['z'\], of no part of the split"):
        guard(SPLIT, ["z"], "global", labels=False)


def test_the_guard_lets_pass_what_is_right() -> None:
    guard(SPLIT, SPLIT.train, "global", labels=False)
    guard(SPLIT, SPLIT.labelled, "local", labels=True)


@given(
    patients=st.sets(st.sampled_from("abcdez"), min_size=1),
    labels=st.booleans(),
)
def test_the_guard_passes_exactly_subsets_of_what_is_allowed(patients: set[str], labels: bool) -> None:
    refused = False
    try:
        guard(SPLIT, patients, "any", labels=labels)
    except LeakError:
        refused = True
    assert refused == (not patients <= set(SPLIT.labelled if labels else SPLIT.train))
