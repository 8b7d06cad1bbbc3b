"""Kills, full disks, damaged files, losses that are not finite, and two at once: what they leave, and what is said."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from examples.mmwhs import files
from examples.mmwhs.__main__ import main
from examples.mmwhs.study import demo as demo_module
from examples.mmwhs.study import table
from examples.mmwhs.study.plan import Folders, Task
from examples.mmwhs.train import checkpoints
from examples.mmwhs.train import run as module
from examples.mmwhs.train.fit import StepSampler, curves
from examples.mmwhs.train.run import run
from examples.mmwhs.train.setup import Setup
from examples.mmwhs.train.stage import StageModule, seed_of
from tests.examples.test_table import planned
from tests.examples.tiny import SHORT, short, write_tree
from tests.faults.subjects import plain, timeless

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "tiny", volumes=5)


def results(out: Path) -> Any:
    stage = out / "1-finetune"
    found = [timeless(files.read_json(path)) for path in (out / "metrics.json", stage / "done.json")]
    return found, plain(files.load(out / "model.pt")), curves(stage)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of one stage; tests do not write there."""
    out = tmp_path_factory.mktemp("runs") / "random"
    run(short(data), out)
    return out


@pytest.fixture
def half(done: Path, tmp_path: Path) -> Path:
    """A run whose stage has all its steps but is not marked as done."""
    out = tmp_path / "half"
    shutil.copytree(done, out)
    for name in ("metrics.json", "model.pt", "1-finetune/done.json", "1-finetune/weights.pt"):
        (out / name).unlink()
    return out


# Kills and full disks


def test_kills_and_full_disks_change_nothing() -> None:
    """A few of them; ``python -m tests.faults`` does more."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults", "--kills", "2", "--full", "1", "--seed", "7"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("2 kills and 1 full disks") == 2


class StoppedError(Exception):
    """In place of a kill."""


@pytest.mark.parametrize("step", [3, 5])
def test_a_run_goes_on_where_its_folder_was_moved_to(
    step: int, data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = StageModule.training_step

    def stops(self: StageModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == step:
            raise StoppedError
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(StageModule, "training_step", stops)
        with pytest.raises(StoppedError):
            run(short(data), tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    run(short(data), tmp_path / "there")
    assert results(tmp_path / "there") == results(done)


def test_the_best_score_so_far_is_known_where_the_folder_was_moved_to(tmp_path: Path) -> None:
    def keep(folder: str) -> checkpoints.Keep:
        return checkpoints.Keep(tmp_path / folder, "best", monitor="validation_dice", mode="max")

    before, after = keep("a"), keep("b")
    path = str(tmp_path / "a" / "best.ckpt")
    before.best_model_score = before.kth_value = torch.tensor(0.9)
    before.best_model_path = before.kth_best_model_path = path
    before.best_k_models = {path: torch.tensor(0.9)}
    after.load_state_dict(before.state_dict())
    assert after.best_model_score == 0.9
    assert after.best_k_models == {str(tmp_path / "b" / "best.ckpt"): 0.9}
    assert after.best_model_path == after.kth_best_model_path == str(tmp_path / "b" / "best.ckpt")


def test_a_checkpoint_is_written_beside_its_place(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move from the system's folder for temporary files is a copy where that is another disk: it can be cut."""
    renamed: list[tuple[Path, Path]] = []
    original = files.os.replace

    def replace_(source: Path, target: Path) -> None:
        renamed.append((Path(source).parent, Path(target)))
        original(source, target)

    monkeypatch.setattr(files.os, "replace", replace_)
    monkeypatch.setattr(shutil, "move", lambda *_: pytest.fail("a file was moved"))
    run(short(data), tmp_path / "run")
    assert {"last.ckpt", "best.ckpt", "weights.pt", "model.pt", "metrics.json"} <= {path.name for _, path in renamed}
    assert all(parent == path.parent for parent, path in renamed)


def test_a_start_that_was_killed_leaves_a_folder_of_ours(tmp_path: Path) -> None:
    """Before its mark was written, or in the middle of that, or after it."""
    out = tmp_path / "run"
    out.mkdir()
    for content in (None, "", '{"made by": "examples.mmwhs run"}'):
        if content is not None:
            (out / files.MARK).write_text(content)
        files.own(out, "run")
    (out / f".{'0a' * 16}.part-config.yaml").touch()
    (out / ".notes.part-1.txt").touch()  # not ours: no digits of a killed process
    with files.alone(out, "run"):
        assert {path.name for path in out.iterdir()} == {".lock", files.MARK, ".notes.part-1.txt"}


def test_a_full_disk_ends_a_table_with_one_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what went wrong can be written down."""

    def full(*_: Any, **options: Any) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    jobs = planned(data, ("random",), (2,))
    folders = Folders(tmp_path, tmp_path / "results")
    monkeypatch.setattr(table, "_train", full)
    _, _, error = table.work(Task(jobs[0], 0), folders, os.getpid())
    assert "room on the disk" in error
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match=r"room on the disk for .*failed.*'No space left on device'.* Make room, and"):
        table.make(jobs, folders, count=1)
    assert not [path for path in tmp_path.rglob("*.txt") if path.is_file()]


def test_the_last_line_of_a_curve_may_be_cut(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done / "1-finetune", tmp_path / "stage")
    path = next(tmp_path.glob("stage/curves/*/metrics.csv"))
    wanted = curves(tmp_path / "stage")
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for cut in range(1, len(last)):
        path.write_bytes(whole + last[:cut])
        assert curves(tmp_path / "stage") == wanted


# Damaged files


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [cut, flip, lambda _: b"", lambda _: b"<html>"])
@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_a_damaged_checkpoint_is_named(name: str, damage: Callable[[bytes], bytes], data: Path, half: Path) -> None:
    path = half / "1-finetune" / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        ValueError, match=rf"^Expected a whole checkpoint in .*{name}, got .* remove the folder .*1-fin"
    ) as e:
        run(short(data), half)
    assert "\n" not in str(e.value)
    assert not (half / "1-finetune" / "done.json").exists()


def test_what_is_said_of_a_damaged_checkpoint_helps(data: Path, half: Path, done: Path) -> None:
    (half / "1-finetune" / "last.ckpt").write_bytes(b"")
    shutil.rmtree(half / "1-finetune")
    run(short(data), half)
    assert results(half) == results(done)


@pytest.mark.parametrize("name", ["1-finetune/done.json", "metrics.json"])
def test_damaged_facts_are_named_and_made_again(name: str, data: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    (out / name).write_bytes(cut((out / name).read_bytes()))
    with pytest.raises(ValueError, match=rf"^Expected whole JSON in .*{name}, got .* remove it, and the same command"):
        run(short(data), out)
    (out / name).unlink()
    run(short(data), out)
    assert results(out) == results(done)


def test_any_bit_of_a_checkpoint_may_be_wrong(done: Path, tmp_path: Path) -> None:
    """It is noticed, or changes nothing."""
    path = done / "1-finetune" / "weights.pt"
    whole, wanted = path.read_bytes(), plain(files.load(path))
    noticed = 0
    for bit in range(0, 8 * len(whole), 8 * len(whole) // 300):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        (tmp_path / "weights.pt").write_bytes(changed)
        try:
            assert plain(files.load(tmp_path / "weights.pt")) == wanted, bit
        except ValueError:
            noticed += 1
    assert noticed > 100


@pytest.mark.parametrize("content", [b"seed: [1", b"\xff\xfe\xfd", b"a: !!python/object/apply:os.system [exit 1]"])
def test_yaml_that_cannot_be_read_is_named(content: bytes, data: Path, done: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    (out / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=r"^Expected plain values as YAML in .*config.yaml, got '[^\n]*$"):
        run(short(data), out)


# Losses and weights that are not finite


def test_a_loss_that_is_not_finite_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = StageModule.loss_of

    def spoiled(self: StageModule, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        loss = original(self, images, ids)
        return loss * torch.nan if self._trainer is not None and self.global_step == 3 else loss

    monkeypatch.setattr(StageModule, "loss_of", spoiled)
    with pytest.raises(
        ValueError, match=r"^Expected a finite loss in stage 'finetune', got nan at step 3 on"
    ) as caught:
        run(short(data), tmp_path / "run")
    message = str(caught.value)
    setup = Setup.of(short(data), tmp_path / "run" / "cache")
    slices = module.training_slices(setup.store, setup.split, "finetune", ("transaxial",), labels=True)
    schedule = SHORT.schedules["finetune"]
    seed = seed_of(0, "finetune", "order")
    batch = next(iter(StepSampler(len(slices), schedule.batch_size, seed=seed, start=3, stop=4)))
    assert f"the slices {', '.join(slices.names[i] for i in batch)}. Look" in message
    assert {name.split()[0] for name in slices.names} == set(setup.split.labelled)
    assert "learning_rate` (0.01)" in message
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize(("steps", "said"), [(1, "NaN in "), (2, "with weights that were not finite before them")])
def test_weights_that_are_not_finite_go_nowhere(
    steps: int, said: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        StageModule, "on_train_batch_end", lambda self, *_: self.tapped.net.classifier.weight.data.fill_(torch.nan)
    )
    schedule = replace(SHORT.schedules["finetune"], steps=steps, every=steps)
    scale = replace(SHORT, schedules={"finetune": schedule})
    chosen = replace(short(data), scale=scale)
    with pytest.raises(ValueError, match=said):
        run(chosen, tmp_path / "run")
    assert not (tmp_path / "run" / "1-finetune" / "weights.pt").exists()


# Two at once


@pytest.mark.parametrize("command", ["run", "demo"])
def test_a_folder_that_another_process_is_at_is_refused(
    command: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    files.own(out, command)
    monkeypatch.setattr(module, "train", lambda *args, **options: pytest.fail("trained"))
    monkeypatch.setattr(demo_module, "run", lambda *args, **options: pytest.fail("ran"))
    with FileLock(out / ".lock"):
        assert main([command, "--data", str(data), "--out", str(out), "--labelled", "2"]) == 2
    said = capsys.readouterr().err
    assert "another process at work in it. Wait until it ends, or choose another folder with --out." in said
    assert {path.name for path in out.iterdir()} == {".lock", files.MARK}


# What is said


def test_a_folder_that_cannot_be_written_is_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["run", "--data", str(data), "--out", str(tmp_path / "file" / "out"), "--labelled", "2"]) == 2
    assert "error: Expected files that can be read and written, got" in capsys.readouterr().err
