"""Self-training in the pipeline: whose labels it sees, what it leaves, and that it goes on as it would have."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from rich.console import Console

from examples.mmwhs import files
from examples.mmwhs.data.augment import AUGMENTATIONS, Augment
from examples.mmwhs.data.datasets import open_dataset
from examples.mmwhs.data.splits import make_split
from examples.mmwhs.data.store import evaluation_slices
from examples.mmwhs.study.demo import demo
from examples.mmwhs.train import config, methods
from examples.mmwhs.train import stage as stage_module
from examples.mmwhs.train.fit import StepSampler, curves
from examples.mmwhs.train.run import run
from examples.mmwhs.train.setup import Setup
from examples.mmwhs.train.stage import StageModule
from mmgl_losses import FeatureTaps, MeanTeacher, copy_paste
from mmgl_losses.functional import local_supcon
from mmgl_losses.networks.selftraining import Mixed
from tests.examples.tiny import SCALE, settings, write_tree

NAME = "random_ds_selftrain"
LAST = replace(SCALE, kept="last")
BESIDE = Path(__file__).parents[2] / "examples/mmwhs/experiments/acdc64/contrast.yaml"
KINDS = "labels", "places"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tree(tmp_path_factory.mktemp("data") / "tiny")


def small(data: Path, scale: config.Scale = LAST, **changes: Any) -> config.Run:
    return replace(settings(data, NAME, labelled=1, **changes), scale=scale)


@pytest.fixture(scope="module")
def done(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    run(small(data), out, cache=data.parent / "cache")
    return out


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_it_leaves_the_weights_of_the_teacher_after_the_last_step(done: Path) -> None:
    state = files.load(done / "2-selftrain" / "last.ckpt")["state_dict"]
    left = files.load(done / "2-selftrain" / "weights.pt")
    assert all(torch.equal(value, state[f"teacher.module.net.{key}"]) for key, value in left.items())
    assert not same(left, {key: state[f"tapped.net.{key}"] for key in left})
    assert not same(left, files.load(done / "1-finetune" / "weights.pt"))
    assert same(left, files.load(done / "model.pt")["state_dict"])
    assert not list(done.glob("*/best.ckpt"))


def test_it_says_how_many_slices_it_saw_with_and_without_labels(done: Path, data: Path) -> None:
    split = make_split(open_dataset(data), labelled=1, seed=0)
    facts = files.read_json(done / "metrics.json")["stages"]["selftrain"]
    assert (facts["patients"], facts["unlabelled"]["patients"]) == (1, len(split.train))
    assert facts["unlabelled"]["slices"] == facts["slices"] * len(split.train)
    said = (done / "log.txt").read_text()
    assert f"with labels and {facts['unlabelled']['slices']} of {len(split.train)} without" in said


def test_the_last_weights_are_kept_where_the_scale_says_so(done: Path) -> None:
    folder = done / "1-finetune"
    state = files.load(folder / "last.ckpt")["state_dict"]
    left = files.load(folder / "weights.pt")
    assert all(torch.equal(value, state[f"tapped.net.{key}"]) for key, value in left.items())
    facts = files.read_json(folder / "done.json")
    assert facts["best_step"] == SCALE.schedules["finetune"].steps
    assert facts["validation_dice"] == pytest.approx(curves(folder)["validation_dice"][-1][1])


def spoiled(data: Path, root: Path, patients: set[str]) -> Path:
    """A copy of the data in which the labels of some patients are those of others, mirrored."""
    write_tree(root)
    for name in patients:
        path = root / "labelsTr" / f"{name}.nii.gz"
        image = nib.Nifti1Image.from_filename(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine), path)
    return root


def test_no_label_but_those_of_the_labelled_patients_decides_anything(data: Path, done: Path, tmp_path: Path) -> None:
    """Labels of all other training patients and of validation patients are spoiled: the same weights, the same keys."""
    split = make_split(open_dataset(data), labelled=1, seed=0)
    others = {*split.train, *split.validation} - set(split.labelled)
    other = spoiled(data, tmp_path / "tiny", others)
    assert Setup.of(small(other), tmp_path / "c").keys() == Setup.of(small(data), tmp_path / "c").keys()
    run(small(other), tmp_path / "run", cache=tmp_path / "cache")
    for stage in ("1-finetune", "2-selftrain"):
        assert same(files.load(tmp_path / "run" / stage / "weights.pt"), files.load(done / stage / "weights.pt"))
    labelled = spoiled(data, tmp_path / "third", set(split.labelled))
    assert not set(Setup.of(small(labelled), tmp_path / "c").keys()) & set(Setup.of(small(data), tmp_path / "c").keys())
    best = Setup.of(small(other, SCALE), tmp_path / "c").keys()[0]  # where validation chooses, it is in the key
    assert best != Setup.of(small(data, SCALE), tmp_path / "c").keys()[0]


def test_every_image_is_in_the_key_and_fine_tuning_is_shared(data: Path, tmp_path: Path) -> None:
    other = write_tree(tmp_path / "tiny")
    split = make_split(open_dataset(data), labelled=1, seed=0)
    name = next(iter(set(split.train) - set(split.labelled)))
    path = other / "imagesTr" / f"{name}.nii.gz"
    image = nib.Nifti1Image.from_filename(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + 1, image.affine), path)
    keys = [Setup.of(small(each), tmp_path / "c").keys() for each in (data, other)]
    assert keys[0][0] == keys[1][0]
    assert keys[0][1] != keys[1][1]
    plain = replace(settings(data, "random_ds", labelled=1), scale=LAST)
    assert Setup.of(plain, tmp_path / "c").keys() == keys[0][:1]


class KilledError(Exception):
    """In place of a signal."""


def run_killed(chosen: config.Run, out: Path, cache: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed in a step of self-training, and goes on to its end."""
    original = StageModule.training_step

    def killed(self: StageModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if (self.stage.name, self.global_step) == ("selftrain", step):
            raise KilledError
        return original(self, batch, batch_idx)

    with monkeypatch.context() as context:
        context.setattr(StageModule, "training_step", killed)
        with pytest.raises(KilledError):
            run(chosen, out, cache=cache)
    run(chosen, out, cache=cache)


@pytest.mark.parametrize("step", [2, 4])
def test_a_killed_run_ends_as_an_undisturbed_one(
    step: int, data: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_killed(small(data), tmp_path / "run", data.parent / "cache", step, monkeypatch)
    assert same(files.load(tmp_path / "run" / "model.pt")["state_dict"], files.load(done / "model.pt")["state_dict"])
    assert curves(tmp_path / "run" / "2-selftrain") == curves(done / "2-selftrain")


def module_of(*changes: str, method: str = NAME) -> tuple[StageModule, dict[str, Any]]:
    stage = methods.load(config.Method, method, changes).stages[1]
    torch.manual_seed(0)
    from mmgl_losses import UNet

    net = UNet(1, 3, channels=(4, 4, 8, 8, 8), norm="batch")
    module = StageModule(net, stage, SCALE.schedules["selftrain"], classes=3, shape=(32, 32), seed=0)
    images, labels = torch.rand(4, 1, 32, 32), torch.randint(3, (4, 32, 32))
    return module, {"labelled": {"image": images, "label": labels}, "unlabelled": {"image": torch.rand(4, 1, 32, 32)}}


def test_the_loss_is_that_of_true_labels_and_half_of_that_of_the_teacher() -> None:
    """Without augmentation and with boxes known, by hand: labels where they are true, the teacher's elsewhere."""
    module, batch = module_of("stages.selftrain.augmentation=none", "stages.selftrain.teaching.augmentation=none")
    assert module.teacher is not None
    torch.manual_seed(5)
    loss = module.loss_on(batch)
    torch.manual_seed(5)
    corners = [torch.randint(32 - 21 + 1, (4, 1)) for _ in range(2)]
    first, labels = batch["labelled"]["image"], batch["labelled"]["label"]
    second = batch["unlabelled"]["image"]
    guessed = module.teacher(second)[0].argmax(1)
    images, true, taught = [], [], []
    for swap in (False, True):
        for i in range(4):
            inside = torch.zeros(32, 32, dtype=torch.bool)
            top, left = (int(corner[i]) for corner in corners)
            inside[top : top + 21, left : left + 21] = True
            other = ~inside if swap else inside  # where the unlabelled slice is seen
            images.append(torch.where(other, second[i], first[i]))
            true.append(torch.where(other, -1, labels[i]))
            taught.append(torch.where(other, guessed[i], -1))
    output, levels = module.tapped(torch.stack(images))
    levels = {**levels, "output": output}
    expected = module.loss(levels, torch.stack(true)) + 0.5 * module.loss(levels, torch.stack(taught))
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_contrast_of_points_comes_on_top(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the parts of the stage were given and gave is noted; the contrast of that is taken by hand."""
    none = "stages.selftrain.augmentation=none", "stages.selftrain.teaching.augmentation=none"
    module, batch = module_of(*none, "stages.selftrain.contrast.weight=0.25", method=f"{BESIDE}:{kind}")
    plain, _ = module_of(*none, method=f"{BESIDE}:random_ds_selftrain")
    plain.load_state_dict({key: value for key, value in module.state_dict().items() if not key.startswith("points.")})
    mixes: list[Mixed] = []
    monkeypatch.setattr(
        stage_module, "copy_paste", lambda *args, **named: mixes.append(copy_paste(*args, **named)) or mixes[-1]
    )
    torch.manual_seed(5)
    loss = module.loss_on(batch)
    torch.manual_seed(5)
    without = plain.loss_on(batch)
    if kind == "labels":
        images, options = mixes[0].images, {"pairs": "batch"}
        ids, instances = mixes[0].labels.where(mixes[0].labels != -1, mixes[0].other_labels), None
    else:  # nothing changes the intensities, so that both augmentations are the slice itself
        images, options = batch["unlabelled"]["image"].repeat(2, 1, 1, 1), {"pairs": "augmentations"}
        ids = 1 + torch.arange(64).view(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1).expand(8, 32, 32)
        instances = torch.arange(4).repeat(2)
    assert module.points is not None
    heads = list(module.points.tapped.heads.values())
    names = [f"decoder.blocks.{i}" for i in (1, 2, 3)]
    with FeatureTaps(module.tapped.net, names) as taps:
        module.tapped.net(images)
        features = taps.read()
    options |= {"ignore_index": -1} if kind == "labels" else {"ignore_index": 0, "background_index": -1}
    expected = torch.zeros(())
    for name, head, weight in zip(names, heads, (0.2, 0.2, 0.6), strict=True):
        expected = expected + weight * local_supcon(head(features[name]), ids, instances, temperature=0.07, **options)
    torch.testing.assert_close(loss, without + 0.25 * expected)
    loss.backward()
    for parameter in module.points.tapped.heads.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_the_teacher_sees_geometry_alone_and_the_student_no_clean_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = module_of("stages.selftrain.augmentation=none")
    seen: list[torch.Tensor] = []
    original = MeanTeacher.forward
    monkeypatch.setattr(MeanTeacher, "forward", lambda self, images: seen.append(images) or original(self, images))
    given: list[torch.Tensor] = []
    module.tapped.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    module.loss_on(batch)
    assert torch.equal(seen[0], batch["unlabelled"]["image"])
    mixed, unlabelled = given[-1], batch["unlabelled"]["image"].repeat(2, 1, 1, 1)
    assert (mixed == unlabelled).float().mean() < 0.2  # of a random box, only what intensities leave by chance


def test_curves_say_how_sure_the_teacher_is_and_how_often_right(done: Path, data: Path) -> None:
    """By hand, of the teacher in the last state: over the points of validation slices in which it names a structure."""
    setup = Setup.of(small(data), data.parent / "cache")
    net = setup.network(None, files.load(done / "2-selftrain" / "weights.pt")).eval()
    slices = evaluation_slices(setup.store, setup.split, "validation")
    chosen = np.unique(np.linspace(0, len(slices) - 1, SCALE.validation_slices).round().astype(int))
    sure, right = [], []
    for index in chosen.tolist():
        with torch.no_grad():
            probabilities = net(torch.as_tensor(slices[index]["image"])[None])[0].softmax(0).numpy()
        label = np.asarray(slices[index]["label"])
        for row, column in zip(*np.nonzero(probabilities.argmax(0)), strict=True):
            sure.append(probabilities[:, row, column].max())
            right.append(probabilities[:, row, column].argmax() == label[row, column])
    assert len(right) > 20
    logged = curves(done / "2-selftrain")
    assert logged["validation_right"][-1] == (6, pytest.approx(np.mean(right), abs=1e-5))
    assert logged["validation_sure"][-1] == (6, pytest.approx(np.mean(sure), abs=1e-5))
    assert "validation_sure" not in curves(done / "1-finetune")


def test_a_method_says_what_teaches_it() -> None:
    for change, error in (
        ("stages.selftrain.teaching=null", "`teaching` in stage 'selftrain'"),
        ("stages.selftrain.loss.options.ignore_index=null", "an `ignore_index` in the loss of stage 'selftrain'"),
        ("stages.selftrain.like=nothing", "like of the stage 'selftrain'"),
        ("stages.selftrain.teaching.momentum=2", "momentum"),
        ("stages.selftrain.copies=2", "one copy and no `keys`"),
        ("stages.finetune.like=selftrain", "to be like no other"),
    ):
        with pytest.raises(ValueError, match=error):
            methods.load(config.Method, NAME, [change])
    finetune, selftrain = methods.load(config.Method, NAME, ["stages.finetune.loss.options.weights=[1,2,3]"]).stages
    assert selftrain.loss.options == {**finetune.loss.options, "ignore_index": -1}
    assert (selftrain.taps, selftrain.head) == (finetune.taps, finetune.head)


def test_a_method_says_what_is_contrasted_beside_it() -> None:
    for change, error in (
        ("stages.finetune.contrast={loss: {name: a}, taps: [b], head: {name: c}}", "'selftrain' alone, not in stage"),
        ("stages.selftrain.contrast.loss.options.ignore_index=-2", "`ignore_index: -1` in the loss of `contrast`"),
        ("stages.selftrain.contrast.ids=places", "`pairs: augmentations` in the loss of `contrast`"),
        ("stages.selftrain.contrast.taps=[]", "one or more `taps` in `contrast`"),
        ("stages.selftrain.contrast.weight=-1", "weight"),
        ("stages.selftrain.contrast.cell=0", "cell"),
        ("stages.selftrain.contrast.ids=slices", "ids"),
    ):
        with pytest.raises(ValueError, match=error):
            methods.load(config.Method, f"{BESIDE}:labels", [change])


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_with_contrast_ends_as_an_undisturbed_one(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = replace(small(data), method=methods.load(config.Method, f"{BESIDE}:{kind}"))
    run(chosen, tmp_path / "whole", cache=data.parent / "cache")
    run_killed(chosen, tmp_path / "run", data.parent / "cache", 4, monkeypatch)
    whole, again = (files.load(tmp_path / name / "model.pt")["state_dict"] for name in ("whole", "run"))
    assert same(whole, again)
    assert not any("points" in key or "net" in key for key in whole)


def test_the_pose_is_that_of_the_data_set_in_every_stage_that_turns() -> None:
    wide = Augment("segmentation", rotation=90.0, flip=0.5)
    assert (wide.settings.rotation, wide.settings.flip) == (90.0, 0.5)
    assert Augment("contrast", rotation=5.0).settings == AUGMENTATIONS["contrast"]
    assert Augment("none", rotation=90.0, flip=0.5).settings == AUGMENTATIONS["none"]
    assert replace(wide.settings, rotation=15.0, flip=0.0) == AUGMENTATIONS["segmentation"]
    torch.manual_seed(0)
    image = torch.zeros(64, 1, 33, 33)
    image[:, :, 16, 24:] = 1.0  # a ray to the right
    turned, _ = Augment("segmentation", rotation=90.0).geometry(image)
    top = turned[:, 0, :12].sum((1, 2)) > turned[:, 0, 12:21].sum((1, 2))
    assert 5 < top.sum() < 40  # up to straight up


def test_the_pose_is_in_every_key_of_slices(data: Path, tmp_path: Path) -> None:
    plain = Setup.of(small(data), tmp_path).keys()
    turned = Setup.of(small(data, reading=config.Reading(rotation=90.0)), tmp_path).keys()
    assert not set(plain) & set(turned)
    assert Setup.of(small(data, reading=config.Reading(rotation=0.0)), tmp_path).keys() == plain
    setup = Setup.of(small(data, reading=config.Reading(rotation=90.0, flip=0.5)), tmp_path)
    assert setup.pose == {"rotation": 90.0, "flip": 0.5}
    with pytest.raises(ValueError, match="`flip`"):
        open_dataset(data, flip=2.0)


def test_each_structure_has_its_turn_and_the_rest_stay_as_they_are() -> None:
    shows = np.zeros((40, 3), bool)
    shows[:, 0] = True
    shows[7, 2] = shows[30:32, 2] = True  # the second is nowhere
    plain = list(StepSampler(40, 6, seed=1, start=0, stop=50))
    drawn = list(StepSampler(40, 6, seed=1, start=0, stop=50, shows=shows, balanced=1 / 3))
    assert [batch[:4] for batch in drawn] == [batch[:4] for batch in plain]
    assert all(batch[5] in (7, 30, 31) for batch in drawn)
    assert {batch[5] for batch in drawn} == {7, 30, 31}
    assert len({batch[4] for batch in drawn}) > 20
    assert list(StepSampler(40, 6, seed=1, start=17, stop=50, shows=shows, balanced=1 / 3)) == drawn[17:]
    assert list(StepSampler(40, 6, seed=1, start=0, stop=50, shows=shows & False, balanced=1 / 3)) == plain
    parts = [StepSampler(40, 6, seed=1, start=0, stop=9, shows=shows, balanced=0.5, rank=r, world=2) for r in (0, 1)]
    whole = StepSampler(40, 6, seed=1, start=0, stop=9, shows=shows, balanced=0.5)
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(batch) for batch in whole]


def test_a_structure_that_is_not_found_is_said_while_it_trains(data: Path, tmp_path: Path) -> None:
    """One step at a rate of almost nothing finds next to nothing."""
    schedules = {**SCALE.schedules, "finetune": config.Schedule(steps=2, every=1, batch_size=2, learning_rate=1e-9)}
    said: list[str] = []
    chosen = replace(settings(data, "random", labelled=1), scale=replace(SCALE, schedules=schedules))
    metrics = run(chosen, tmp_path / "run", cache=data.parent / "cache", say=said.append)
    missed = [line for line in said if "not found on any validation slice" in line]
    each = metrics["stages"]["finetune"]
    assert each["steps"] == 2
    curve = curves(tmp_path / "run" / "1-finetune")
    expected = [step for step in (1, 2)
                if any(dict(curve[f"validation_dice_{i}"])[step] == 0 for i in (1, 2))]  # fmt: skip
    assert [int(line.split("step ")[1].split(":")[0]) for line in missed] == expected
    assert expected
    assert all(name in missed[0] for name in ("`balanced`",))


def test_a_demo_trains_a_stage_once_that_its_methods_share(data: Path, tmp_path: Path) -> None:
    console = Console(file=StringIO())
    out = tmp_path / "out"
    chosen = {"random_ds": replace(settings(data, "random_ds", labelled=1), scale=LAST), NAME: small(data)}
    demo({name: lambda _, s=s: s for name, s in chosen.items()}, out, console, data=str(data))
    first, second = (files.load(out / name / "1-finetune" / "weights.pt") for name in chosen)
    assert same(first, second)
    assert "as in random_ds" in (out / NAME / "log.txt").read_text()
    alone = run(small(data), tmp_path / "alone", cache=out / "cache")
    assert files.read_json(out / "metrics.json")[NAME]["pooled"] == alone["pooled"]
