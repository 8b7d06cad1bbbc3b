"""A run from beginning to end on a tiny data set: its files, its numbers, its resumption, and what it never sees."""

import json
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from examples.mmwhs import files
from examples.mmwhs.data.datasets import open_dataset
from examples.mmwhs.data.splits import LeakError, Split
from examples.mmwhs.data.store import SliceStore
from examples.mmwhs.train import config, fit, methods, plain, setup
from examples.mmwhs.train import run as module
from examples.mmwhs.train.evaluate import distances
from examples.mmwhs.train.fit import StepSampler, curves
from examples.mmwhs.train.predict import restore
from examples.mmwhs.train.run import run
from examples.mmwhs.train.stage import StageModule
from tests.examples.tiny import SCALE, settings, write_tree


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of the whole method; tests do not write there."""
    out = tmp_path_factory.mktemp("runs") / "mmgl"
    run(settings(data), out)
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return files.load(folder / "model.pt")["state_dict"]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_leaves_everything(done: Path) -> None:
    stages = [f"{i}-{name}/{file}" for i, name in enumerate(("global", "local", "finetune"), 1)
              for file in ("done.json", "weights.pt", "last.ckpt", "curves/from-step-0/metrics.csv")]  # fmt: skip
    names = ("config.yaml", "split.json", "metrics.json", "model.pt", "overlay.npz", "seen.json", "log.txt")
    for name in (*names, *stages, "3-finetune/best.ckpt"):
        assert (done / name).stat().st_size > 0, name
    assert list((done / "cache").glob("tiny_*.npz"))
    assert not list(done.rglob("*part*"))
    assert plain.parse(config.Run, yaml.safe_load((done / "config.yaml").read_text()), where="") is not None


def test_every_stage_trains_its_part_and_no_more(done: Path) -> None:
    first, second, third = (files.load(done / f"{n}/weights.pt") for n in ("1-global", "2-local", "3-finetune"))
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert any(name.startswith("encoder.") for name in moved)
    assert any(name.startswith("decoder.") for name in moved)
    assert not any(name.startswith("classifier.") for name in moved)
    assert not torch.equal(second["classifier.weight"], third["classifier.weight"])
    assert same(third, weights(done))


def dice(truth: np.ndarray, predicted: np.ndarray, classes: int) -> list[float]:
    """By its definition, structure by structure."""
    result = []
    for index in range(1, classes):
        t, p = truth == index, predicted == index
        result.append(2 * (t & p).sum() / (t.sum() + p.sum()) if t.any() or p.any() else np.nan)
    return result


def test_pooled_metrics_are_what_numpy_says(done: Path, data: Path) -> None:
    metrics, split = files.read_json(done / "metrics.json"), Split.load(done / "split.json")
    dataset = open_dataset(data)
    store = SliceStore(dataset, done / "cache", size=SCALE.slice_size or 0)
    net, *_ = restore(done / "model.pt")
    truth, predicted = [], []
    for case in dataset.cases_of(split.test):
        images, labels = store.slices(case, "transaxial")
        with torch.no_grad():
            logits = net(torch.from_numpy(images).float()[:, None] / 255)
        truth.append(labels)
        predicted.append(logits.argmax(1).numpy())
    t, p = np.concatenate(truth), np.concatenate(predicted)
    each = dice(t, p, 3)
    pooled = metrics["pooled"]
    assert [pooled["dice"]["each"]["3"], pooled["dice"]["each"]["7"]] == pytest.approx(each)
    assert pooled["dice"]["mean"] == pytest.approx(np.mean(each))
    iou = [((t == k) & (p == k)).sum() / ((t == k) | (p == k)).sum() for k in (1, 2)]
    assert pooled["iou"]["mean"] == pytest.approx(np.mean(iou))
    assert pooled["accuracy"] == pytest.approx((t == p).mean())
    assert np.mean(each) > 0.2  # or else the comparison says little


def test_volume_metrics_have_mean_and_spread(done: Path) -> None:
    metrics = files.read_json(done / "metrics.json")
    split = Split.load(done / "split.json")
    assert set(metrics["volumes"]) == set(split.test)
    balls = [volume["dice"]["3"] for volume in metrics["volumes"].values()]
    ball = metrics["per_volume"]["dice"]["each"]["3"]
    assert (ball["mean"], ball["sd"]) == pytest.approx((np.mean(balls), np.std(balls, ddof=1)))
    assert metrics["structures"] == {"3": "ball", "7": "box"}


def test_distances_are_of_points_on_the_surface_in_millimetres() -> None:
    """By hand: every voxel with a neighbour outside is on the surface, and every pair of points is looked at."""

    def surface(mask: np.ndarray) -> np.ndarray:
        inner = mask.copy()
        for axis in range(3):
            inner &= np.roll(mask, 1, axis) & np.roll(mask, -1, axis)
        return np.argwhere(mask & ~inner) * spacing

    spacing = np.array([1.0, 2.0, 0.5])
    truth, ours = np.zeros((2, 14, 16, 18), np.uint8)
    truth[3:8, 4:9, 5:12], ours[4:11, 3:9, 5:13] = 1, 1
    truth[10:12, 10:12, 2:4] = 2  # missing in the other
    apart = np.linalg.norm(surface(truth == 1)[:, None] - surface(ours == 1)[None], axis=-1)
    there, back = apart.min(1), apart.min(0)
    found = distances(truth, ours, 3, spacing.tolist())
    assert found["hd95"] == [pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5), None]
    assert found["assd"] == [pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5), None]


class KilledError(Exception):
    """In place of a signal."""


@pytest.mark.parametrize(("stage", "step"), [("global", 1), ("finetune", 11), ("finetune", 18)])
def test_a_killed_run_ends_as_an_undisturbed_one(
    stage: str, step: int, data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(done, out)
    for name in ("metrics.json", "model.pt"):
        (out / name).unlink()
    for folder in sorted(out.glob("[1-3]-*"))[{"global": 0, "local": 1, "finetune": 2}[stage] :]:
        shutil.rmtree(folder)
    steps: list[tuple[str, int]] = []
    original = StageModule.training_step

    def counted(self: StageModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if (self.stage.name, self.global_step) == (stage, step) and not killed:
            raise KilledError
        steps.append((self.stage.name, self.global_step))
        return original(self, batch, batch_idx)

    killed = False
    monkeypatch.setattr(StageModule, "training_step", counted)
    with pytest.raises(KilledError):
        run(settings(data), out)
    killed = True
    assert not (out / "metrics.json").exists()
    before = len(steps)
    run(settings(data), out)
    every = SCALE.schedules[stage].every
    assert steps[before] == (stage, step // every * every)  # continued, not begun again
    assert same(weights(out), weights(done))
    assert files.read_json(out / "metrics.json")["pooled"] == files.read_json(done / "metrics.json")["pooled"]
    for folder in ("1-global", "2-local", "3-finetune"):
        assert curves(out / folder) == curves(done / folder)


def test_a_finished_run_is_only_read(data: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", lambda *args, **options: pytest.fail("trained again"))
    monkeypatch.setattr(module, "evaluate", lambda *args, **options: pytest.fail("evaluated again"))
    lines: list[str] = []
    assert run(settings(data), done, say=lines.append) == files.read_json(done / "metrics.json")
    assert len(lines) == 3


def test_the_folder_of_another_run_is_refused(data: Path, done: Path) -> None:
    with pytest.raises(ValueError, match=r"seed is 0 there and 1 here.*--out"):
        run(settings(data, seed=1), done)
    with pytest.raises(ValueError, match="method"):
        run(settings(data, "random"), done)
    longer = replace(SCALE.schedules["finetune"], steps=30)
    changed = replace(SCALE, schedules={**SCALE.schedules, "finetune": longer})
    with pytest.raises(ValueError, match=r"schedules\.finetune\.steps is 24 there and 30 here"):
        run(replace(settings(data), scale=changed), done)


def test_another_machine_may_continue(data: Path, done: Path) -> None:
    machine = config.Compute(accelerator="cpu", workers=1, precision="bf16-mixed")
    assert run(settings(data, compute=machine), done)["method"] == "MMGL (2:3:5)"


def test_a_folder_of_something_else_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="other files"):
        run(settings(data), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def change(path: Path, values: dict[float, float] | None) -> None:
    """Replaces label values in a file, or, with None, turns the intensities of an image around."""
    image = nib.load(path)
    array = np.asanyarray(image.dataobj)
    new = -array if values is None else np.vectorize(lambda v: values.get(v, v))(array).astype(array.dtype)
    nib.save(nib.Nifti1Image(new, image.affine), path)


def test_what_must_not_be_seen_changes_nothing(data: Path, done: Path, tmp_path: Path) -> None:
    other = tmp_path / "tiny"
    shutil.copytree(data, other)
    split = Split.load(done / "split.json")
    for patient in split.test:
        change(other / "imagesTr" / f"{patient}.nii.gz", None)
    for patient in {*split.test, *split.train} - set(split.labelled):
        change(other / "labelsTr" / f"{patient}.nii.gz", {3: 7, 7: 0})
    metrics = run(settings(other), tmp_path / "run")
    assert same(weights(tmp_path / "run"), weights(done))
    assert metrics["pooled"] != files.read_json(done / "metrics.json")["pooled"]


def test_training_asks_the_guard(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = setup.make_split

    def leaky(*args: Any, **options: Any) -> Split:
        split = original(*args, **options)
        object.__setattr__(split, "labelled", split.test[:1])
        return split

    monkeypatch.setattr(setup, "make_split", leaky)
    with pytest.raises(LeakError):
        run(settings(data, "random"), tmp_path / "run")


@pytest.mark.parametrize("world", [1, 2])
def test_batches_depend_on_the_step_alone(world: int) -> None:
    def batches(start: int, stop: int, rank: int) -> list[list[int]]:
        return list(StepSampler(13, 4, seed=7, start=start, stop=stop, rank=rank, world=world))

    whole = [batches(0, 12, rank) for rank in range(world)]
    assert all(batches(5, 12, rank) == whole[rank][5:] for rank in range(world))
    joined = [sorted(chain(*parts)) for parts in zip(*whole, strict=True)]
    assert all(len(set(batch)) == 4 for batch in joined)
    for first in range(0, 12, 3):  # three whole batches in a pass: no slice twice
        assert len(set(chain(*joined[first : first + 3]))) == 12
    assert len({tuple(chain(*joined[i : i + 3])) for i in range(0, 12, 3)}) == 4


def test_a_small_data_set_makes_smaller_batches() -> None:
    assert sorted(next(iter(StepSampler(3, 8, seed=0, start=0, stop=1)))) == [0, 1, 2]


def test_batches_are_shared_out_evenly_or_not_at_all() -> None:
    with pytest.raises(ValueError, match="multiple of 2 devices"):
        StepSampler(10, 3, seed=0, start=0, stop=1, world=2)


class Registered(torch.nn.Module):
    """A loss of someone else's."""

    def __init__(self, *, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, levels: dict[str, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
        return self.strength * torch.nn.functional.cross_entropy(levels["output"], labels)


@pytest.fixture
def registered() -> str:
    from mmgl_losses import plugins

    plugins.register_loss("tests.Registered", Registered)
    return "tests.Registered"


def test_a_loss_of_a_third_party_needs_a_configuration_alone(data: Path, tmp_path: Path, registered: str) -> None:
    path = tmp_path / "theirs.yaml"
    loss = {"name": registered, "options": {"strength": 2.0}}
    path.write_text(json.dumps({"title": "Theirs", "stages": [{"name": "only", "kind": "finetune", "loss": loss}]}))
    chosen = replace(settings(data), method=methods.load(config.Method, path))
    assert run(chosen, tmp_path / "run")["method"] == "Theirs"


def test_curves_go_to_tensorboard_if_asked(data: Path, tmp_path: Path) -> None:
    """The same numbers at the same steps as in the files of CSV."""
    from tensorboard.backend.event_processing import event_accumulator as reading

    out, machine = tmp_path / "run", config.Compute(accelerator="cpu", logger="tensorboard")
    run(settings(data, "random", compute=machine), out)
    folder = out / "1-finetune"
    events = reading.EventAccumulator(str(folder / "curves" / "from-step-0")).Reload()
    for name, points in curves(folder).items():
        assert [(e.step + 1, e.value) for e in events.Scalars(name)] == [(s, pytest.approx(v)) for s, v in points]


def test_a_missing_tensorboard_is_said_before_anything_is_trained(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(*args: object, **options: object) -> None:
        raise ModuleNotFoundError("Neither `tensorboard` nor `tensorboardX` is available.")

    monkeypatch.setattr(fit, "TensorBoardLogger", absent)
    monkeypatch.setattr(module, "train", lambda *args, **options: pytest.fail("trained"))
    machine = config.Compute(accelerator="cpu", logger="tensorboard")
    with pytest.raises(
        ValueError, match="Expected tensorboard, for --logger tensorboard, got no such package. Install"
    ):
        run(settings(data, compute=machine), tmp_path / "run")
