"""Numbers of a table, against scipy and by hand; and the paper's own."""

from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from examples.mmwhs.options import ABLATION, TABLE
from examples.mmwhs.study import compare, report
from examples.mmwhs.study.compare import Grid, difference, labelled_text, stuck


def result(name: str, asked: float, seed: int, dice: float | None, **more: Any) -> dict[str, Any]:
    """What the comparison reads of a result."""
    pooled = {"dice": {"mean": dice}, "iou": {"mean": None if dice is None else dice / 2}, "accuracy": 0.9}
    return {"name": name, "method": name.title(), "asked": asked, "seed": seed, "pooled": pooled,
            "structures": {"1": "a", "2": "b"}, "scored": "test", "stages": {"finetune": {}}, **more}  # fmt: skip


def test_differences_are_what_scipy_says() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0.7, 0.1, 8), rng.normal(0.65, 0.1, 8)
    found = difference(ours.tolist(), theirs.tolist())
    low, high = stats.ttest_1samp(ours - theirs, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.mean == pytest.approx(np.mean(ours - theirs))
    assert found.t == pytest.approx(stats.ttest_1samp(ours - theirs, 0).pvalue)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(ours, theirs).pvalue)


def test_few_or_equal_pairs_have_no_test() -> None:
    assert difference([], []) == compare.Difference(())
    assert (difference([0.5], [0.25]).mean, difference([0.5], [0.25]).low) == (0.25, None)
    equal = difference([0.5, 0.75], [0.25, 0.5])
    assert (equal.mean, equal.low, equal.high, equal.t) == (0.25, 0.25, 0.25, None)


def test_a_grid_pairs_by_seed_and_tells_one_patient_from_all() -> None:
    rows = [result("x", 1, seed, 0.5 + seed / 10) for seed in range(3)]
    rows += [result("y", 1, seed, 0.4 + seed / 20) for seed in (2, 1)] + [result("y", 1.0, 0, 0.9)]
    grid = Grid.of(rows, ["y"])
    assert (list(grid.methods), grid.counts) == (["y", "x"], ("1", "1.0"))
    assert [labelled_text(count) for count in grid.counts] == ["1 labelled", "100 % labelled"]
    assert grid.summary("x", "1", "Dice").mean == pytest.approx(0.6)
    assert grid.summary("x", "1", "Dice").sd == pytest.approx(0.1)
    assert grid.summary("x", "1", "mIoU").mean == pytest.approx(0.3)
    assert grid.compare("x", "y", "1").values == pytest.approx((0.6 - 0.45, 0.7 - 0.5))
    assert grid.best(["x", "y", "z"], "1") == "x"
    assert grid.summary("x", "1.0", "Dice").mean is None


def test_runs_without_a_score_are_left_out() -> None:
    grid = Grid.of([result("x", 3, 0, None), result("x", 3, 1, 0.5), result("y", 3, 0, 0.1), result("y", 3, 1, 0.2)])
    assert grid.summary("x", "3", "Dice").values == (0.5,)
    assert grid.compare("x", "y", "3").values == pytest.approx((0.3,))


@pytest.mark.parametrize(
    ("losses", "dead", "said"),
    [
        ([1.0] * 10 + [0.2] * 10, 0.5, []),
        ([1.0] * 10 + [0.2] * 10, 0.0, ["b not found on validation"]),
        ([1.0] * 10 + [0.6] * 10, 0.5, ["training loss parked"]),
        ([1.0] * 10 + [0.2] * 10, -1.0, []),  # not among the validation slices
    ],
)
def test_stuck_runs(losses: list[float], dead: float, said: list[str]) -> None:
    curves = {"loss": list(enumerate(losses)), "validation_dice_1": [[5, 0.0], [10, 0.9]]}
    curves["validation_dice_2"] = [[5, 0.8], [10, dead]]
    stages = {"global": {}, "finetune": {"curves": curves, "best_step": 10}}
    assert stuck(result("x", 1, 0, 0.5, stages=stages)) == said


def test_the_paper_is_transcribed() -> None:
    paper = yaml.safe_load(report.PAPER.read_text())
    assert list(paper["table"]) == TABLE
    assert list(paper["ablation"]) == ABLATION
    cells = {(name, count): cell for name, row in paper["table"].items() for count, cell in row.items()}
    assert len(cells) == 24
    assert all(iou < dice < accuracy for dice, iou, accuracy in cells.values())
    best = {count: max(TABLE, key=lambda name: cells[name, count][0]) for count in (0.1, 0.2, 0.4)}
    assert best == {0.1: "mmgl", 0.2: "mmgl_334", 0.4: "mmgl_127"}  # bold in the paper
    assert paper["ablation"]["random"] == cells["random", 0.2][0]
    assert paper["ablation"]["mmgl_334"] == cells["mmgl_334", 0.2][0]
    # "In total, the proposed method improves the performance by 10.5 %"
    assert paper["ablation"]["mmgl_334"] - paper["ablation"]["random"] == pytest.approx(0.105)
