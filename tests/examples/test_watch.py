"""What is said of a stage while it trains: structures that fall, and what a resumed or a following stage knows of them."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from examples.mmwhs.study import report
from examples.mmwhs.study.compare import fell
from examples.mmwhs.train import config
from examples.mmwhs.train.fit import curves
from examples.mmwhs.train.run import run
from examples.mmwhs.train.stage import StageModule
from examples.mmwhs.train.watch import Watch, dice_left
from tests.examples.tiny import SCALE, settings, write_tree

NAMES = {"3": "ball", "7": "box"}
MODULE = SimpleNamespace(schedule=SimpleNamespace(balanced=0.3))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "tiny")


def watched(*validations: tuple[float, float], began: dict[str, float] | None = None) -> tuple[list[str], Watch]:
    """What is said after validations every hundred steps, each the Dice of ball and box."""
    said: list[str] = []
    watch = Watch("A, selftrain", 600, say=said.append, structures=NAMES, began=began)
    validate(watch, *validations)
    return said, watch


def validate(watch: Watch, *validations: tuple[float, float], step: int = 0) -> None:
    for ball, box in validations:
        step += 100
        known = {"validation_dice_1": ball, "validation_dice_2": box}
        watch.on_validation_end(SimpleNamespace(global_step=step, callback_metrics=known), MODULE)


@pytest.mark.parametrize(
    ("began", "values", "steps"),
    [
        (0.72, [0.10, 0.29, 0.37], [100, 200]),  # .37 is above the half
        (None, [0.10, 0.29, 0.37], []),
        (None, [0.72, 0.10], [200]),
        (None, [0.05, 0.72, 0.50, 0.30], [400]),  # from the highest, wherever that was
        (0.40, [0.19], [100]),
        (0.40, [0.21], []),  # not the half
        (0.38, [0.185], []),  # the half, and less than .2
        (0.90, [0.46], []),
        (0.90, [0.0], [100]),
        (0.90, [-1.0], []),  # no slice shows it
        (-1.0, [0.5], []),
    ],
)
def test_a_structure_that_falls_is_said(began: float | None, values: list[float], steps: list[int]) -> None:
    said, watch = watched(*((0.5, value) for value in values), began=None if began is None else {"7": began})
    lines = [line for line in said if "has fallen" in line]
    assert [int(line.split("step ")[1].split(":")[0]) for line in lines] == steps
    assert list(watch.fell) == (["7"] if steps else [])


def test_the_line_names_structure_both_values_and_step() -> None:
    said, watch = watched((0.6, 0.7), (0.1, 0.2), (0.05, 0.25))
    assert said == [
        "A, selftrain: step 200: validation Dice has fallen: ball from 0.600 to 0.100, box from 0.700 to 0.200",
        "A, selftrain: step 300: validation Dice has fallen: ball from 0.600 to 0.050, box from 0.700 to 0.250",
    ]
    assert watch.fell == {"3": {"from": 0.6, "to": 0.05, "step": 300}, "7": {"from": 0.7, "to": 0.2, "step": 200}}


def test_a_resumed_stage_knows_what_was_there() -> None:
    _, before = watched((0.6, 0.7), (0.1, 0.7))
    said, after = watched()
    after.load_state_dict(before.state_dict())
    validate(after, (0.2, 0.1), step=200)
    assert after.fell == {"3": {"from": 0.6, "to": 0.1, "step": 200}, "7": {"from": 0.7, "to": 0.1, "step": 300}}
    assert said[0].endswith("ball from 0.600 to 0.200, box from 0.700 to 0.100")


def test_nothing_is_said_where_there_are_no_validation_labels() -> None:
    watch = Watch("A, global", 600, say=pytest.fail, structures=NAMES)
    watch.on_validation_end(SimpleNamespace(global_step=100, callback_metrics={}), MODULE)
    assert watch.fell == {}


class KilledError(Exception):
    """In place of a signal."""


@pytest.mark.parametrize("killed", [False, True])
def test_self_training_that_loses_a_structure(
    killed: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Self-training at a rate that ruins the network: the log and the report say what fine-tuning had found."""
    schedules = {
        **SCALE.schedules,
        "finetune": replace(SCALE.schedules["finetune"], steps=60, every=20),
        "selftrain": config.Schedule(steps=8, every=4, batch_size=3, learning_rate=0.5),
    }
    scale = replace(SCALE, schedules=schedules, kept="last")
    chosen = replace(settings(data, "random_ds_selftrain", labelled=2), scale=scale)
    if killed:
        original = StageModule.training_step

        def stops(self: StageModule, batch: Any, batch_idx: int) -> Any:
            if (self.stage.name, self.global_step) == ("selftrain", 6):
                raise KilledError
            return original(self, batch, batch_idx)

        with monkeypatch.context() as context:
            context.setattr(StageModule, "training_step", stops)
            with pytest.raises(KilledError):
                run(chosen, tmp_path / "run", cache=data.parent / "cache")
    metrics = run(chosen, tmp_path / "run", cache=data.parent / "cache")

    before, after = (curves(tmp_path / "run" / name) for name in ("1-finetune", "2-selftrain"))
    found = {}
    for index, value in enumerate(NAMES, start=1):
        high = dict(before[f"validation_dice_{index}"])[60]
        for step, dice in after[f"validation_dice_{index}"]:
            high = max(high, dice)
            if dice < high / 2 and high - dice >= 0.2 and dice < found.get(value, {"to": 1})["to"]:
                found[value] = {"from": high, "to": dice, "step": step}
    assert found  # or this shows nothing
    assert metrics["stages"]["selftrain"]["fell"] == {value: pytest.approx(each) for value, each in found.items()}
    assert "fell" not in metrics["stages"]["finetune"]
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "selftrain: step 4: validation Dice has fallen: " in log
    assert dice_left(tmp_path / "run" / "1-finetune", NAMES) == {
        value: dict(before[f"validation_dice_{index}"])[60] for index, value in enumerate(NAMES, start=1)
    }
    page = report.write_runs(tmp_path / "out", {"a": tmp_path / "run"}).read_text()
    for sentence in fell(metrics):
        assert sentence in page
    assert any(NAMES[value] in sentence for value in found for sentence in fell(metrics))


def test_reports_put_it_in_words() -> None:
    stages = {"finetune": {}, "selftrain": {"fell": {"7": {"from": 0.721, "to": 0.0995, "step": 200}}}}
    assert fell({"structures": NAMES, "stages": stages}) == ["box fell from 0.721 to 0.100 by step 200 of selftrain"]
    assert fell({"structures": NAMES, "stages": {"finetune": {}}}) == []
