"""Methods that share text, and what a stage can do beyond a loss: aligned copies, places, frozen parts, other keys."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from examples.mmwhs import files
from examples.mmwhs.data.augment import Augment, Settings
from examples.mmwhs.options import ABLATION, BESIDE, TABLE, seeds_of
from examples.mmwhs.train import config, methods, setup
from examples.mmwhs.train import run as module
from examples.mmwhs.train.components import MomentumQueue
from examples.mmwhs.train.stage import StageModule
from mmgl_losses import UNet
from tests.examples.tiny import SCALE, settings, write_tree

HERE = methods.HERE / "experiments" / "acdc64"
SMALL = HERE / "methods.yaml"
NET = partial(UNet, 1, 3, channels=(4, 8, 8, 8, 8), norm="batch")
KNOWN = methods.load_all(methods.built_in(config.Method))


def test_every_row_of_the_table_and_every_bar_is_a_method() -> None:
    assert set(KNOWN) >= {*TABLE, *BESIDE, *ABLATION}
    titles = [KNOWN[name].title for name in (*TABLE, *BESIDE, *ABLATION[2:4])]
    assert len(set(titles)) == len(titles)


def test_portfolios_are_the_weights_of_fine_tuning_and_nothing_else() -> None:
    wanted = {
        "mmgl_226": [0.2, 0.2, 0.6],
        "mmgl_127": [0.1, 0.2, 0.7],
        "mmgl_334": [0.3, 0.3, 0.4],
        "mmgl": [0.2, 0.3, 0.5],
    }
    assert {name: KNOWN[name].stages[-1].loss.options["weights"] for name in wanted} == wanted
    assert len({str(KNOWN[name].stages[:2]) for name in wanted}) == 1


def test_each_bar_adds_one_thing_to_the_one_before() -> None:
    random, ds, scales, views, full = (KNOWN[name].stages for name in ABLATION)
    assert (random[-1].taps, len(ds[-1].taps)) == ([], 2)
    assert [len(bar) for bar in (random, ds, scales, views, full)] == [1, 1, 2, 2, 3]
    assert scales[-1] == views[-1] == full[-1] == ds[-1]
    assert replace(scales[0], planes="all") == views[0] == full[0]
    assert KNOWN["global"].stages[0].taps == scales[0].taps[-1:]


def test_baselines_are_theirs() -> None:
    chaitanya, hu = KNOWN["global_local"].stages[1], KNOWN["semicontrast"].stages[1]
    assert (chaitanya.labels, chaitanya.frozen, chaitanya.aligned) == (False, ["encoder"], True)
    assert hu.labels
    assert (hu.loss.options["pairs"], hu.loss.options["background"], hu.taps) == ("batch", "key", ["decoder.blocks.3"])
    for name in ("random", "global", "global_local", "semicontrast", "pcl", "moco", "full", "supervised_planes"):
        assert KNOWN[name].stages[-1] == KNOWN["random"].stages[-1]  # deep supervision is MMGL's
        assert all(stage.planes == "main" for stage in KNOWN[name].stages) == (name != "supervised_planes")
    assert KNOWN["full"].labelled == 1.0


def test_the_files_for_small_slices_change_one_thing_each() -> None:
    small = methods.load_all([SMALL])
    variants = methods.load_all([HERE / "variants.yaml"])
    assert variants["mmgl"] == small["mmgl"]
    assert len({str(method.stages) for method in variants.values()}) == len(variants)
    others = methods.load_all([HERE / "others.yaml"])
    assert not set(others) & set(small)
    for name, base in (("mmgl_all_labels", "mmgl"), ("semicontrast_all_labels", "semicontrast")):
        before, local, after = others[name].stages
        assert [before, replace(local, labelled=None), after] == small[base].stages
        assert local.labelled == 1.0


def test_every_method_has_the_same_trials() -> None:
    known, trials = methods.load_all([SMALL, HERE / "others.yaml"]), methods.load_all([HERE / "trials.yaml"])
    wanted = [*methods.load_all([SMALL]), "mmgl_long", "mmgl_long_all_labels", "global_places_long"]
    ours = {name: known[name] for name in wanted if name != "full"}  # nobody tunes the ceiling
    slow, half = {"schedule": "finetune_slow"}, ["encoder", "decoder.blocks.0", "decoder.ups.0", "decoder.blocks.1"]
    changes = {"": {}, "_slow": slow, "_frozen": {**slow, "frozen": half}}
    assert set(trials) == {f"{name}{kind}" for name in ours for kind in changes}
    for name, method in ours.items():
        for kind, change in changes.items():
            *before, last = method.stages
            assert trials[f"{name}{kind}"].stages == [*before, replace(last, **change)]


def test_arms_of_the_mouse_differ_in_planes_or_self_training_alone() -> None:
    arms = methods.load_all([HERE.parent / "mouse" / "planes.yaml"])
    scale = methods.load(config.Scale, HERE.parent / "mouse" / "scale.yaml")
    steps = {
        name: sum(scale.schedules[stage.schedule or stage.kind].steps for stage in arm.stages if not stage.teaching)
        for name, arm in arms.items()
    }
    assert len(set(steps.values()) - {steps["random_ds"]}) == 1  # all that is before or longer is as long
    small = methods.load_all([SMALL], ["stages.finetune.loss.options.class_weights=[0.2" + 20 * ", 1" + "]"])
    assert arms["random_ds"] == small["random_ds"]
    assert arms["mmgl_planes"].stages == small["mmgl"].stages
    one, three = arms["mmgl_plane"].stages, arms["mmgl_planes"].stages
    assert [replace(stage, planes="all") for stage in one[:2]] == three[:2]
    assert {stage.planes for stage in one} == {"main"}
    supervised, finetune = arms["supervised_planes"].stages
    assert [finetune] == arms["random_ds"].stages
    assert supervised == replace(finetune, name="supervised", schedule="supervised", planes="all")
    teaching = methods.load_all([HERE / "selftrain.yaml"])["random_ds_selftrain"].stages[-1].teaching
    for name in ("random_ds", "mmgl_planes", "supervised_planes"):
        *before, last = arms[f"{name}_selftrain"].stages
        assert before == arms[name].stages
        options = {**before[-1].loss.options, "ignore_index": -1}
        loss = config.Part("DeepSupervisionDice", options)
        assert last == replace(before[-1], name="selftrain", kind="selftrain", loss=loss, teaching=teaching)


def test_larger_slices_have_the_methods_of_the_smaller_ones() -> None:
    large = methods.load_all([HERE.parent / "acdc128" / "selftrain.yaml"])
    scale = methods.load(config.Scale, HERE.parent / "acdc128" / "scale.yaml")
    small = methods.load_all([HERE / "selftrain.yaml"])
    quick = methods.load(config.Scale, "quick")
    for name in ("random_ds", "random_ds_selftrain"):
        assert large[name] == small[name]
    assert large["full_ds"].labelled == 1.0
    assert (scale.slice_size, scale.channels, scale.kept) == (128, quick.channels, "last")
    assert scale.schedules["finetune"] == replace(quick.schedules["finetune"], steps=2000, every=500)
    assert scale.schedules["selftrain"] == replace(quick.schedules["selftrain"], steps=1500, every=500)


def test_overrides(tmp_path: Path) -> None:
    changed = methods.load(config.Method, "mmgl", ["stages.local.loss.options.formula=mmgl", "stages.global.taps=[up]"])
    assert changed.stages[1].loss.options["formula"] == "mmgl"
    assert changed.stages[0].taps == ["up"]
    assert [s.name for s in methods.load(config.Method, "mmgl", ["stages.local=null"]).stages] == ["global", "finetune"]
    assert methods.load(config.Scale, "small", ["schedules.finetune.steps=600"]).schedules["finetune"].steps == 600
    with pytest.raises(ValueError, match="stage of random"):
        methods.load(config.Method, "random", ["stages.local.copies=2"])
    with pytest.raises(ValueError, match="copys"):
        methods.load(config.Method, "mmgl", ["stages.local.copys=2"])
    with pytest.raises(ValueError, match="an override like"):
        methods.load(config.Method, "mmgl", ["stages.local.copies"])
    both = methods.load_all(["random", "mmgl"], ["stages.local.copies=2"])
    assert (both["mmgl"].stages[1].copies, both["random"]) == (2, KNOWN["random"])
    with pytest.raises(ValueError, match="with the stage 'locl'"):
        methods.load_all(["random", "mmgl"], ["stages.locl.copies=2"])
    with pytest.raises(ValueError, match="twice"):
        methods.load_all(["random", "random"])


def test_files_extend_one_another_without_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("methods: {mmgl: {extends: mmgl, title: mine}, b: {extends: mmgl, title: b, stages.global: null}}")
    mine = methods.load_all([path])
    assert mine["mmgl"] == replace(KNOWN["mmgl"], title="mine")
    assert (mine["b"].title, len(mine["b"].stages)) == ("b", 2)
    beside = tmp_path / "beside.yaml"
    beside.write_text("methods: {c: {extends: 'mine.yaml:b', title: other}}")
    assert methods.load_all([f"{path}:mmgl", beside]) == {
        "mmgl": mine["mmgl"],
        "c": replace(mine["b"], title="other"),
    }
    with pytest.raises(ValueError, match="method in .*mine.yaml"):
        methods.load_all([f"{path}:d"])
    path.write_text("{extends: mmgl, title: mine}")
    with pytest.raises(ValueError, match="several methods below `methods:`"):
        methods.load_all([f"{path}:mmgl"])
    path.write_text(f"{{extends: {path}, title: mine}}")
    with pytest.raises(ValueError, match="without a circle"):
        methods.load(config.Method, path)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("global_local", "stages.local.copies=1", "two or more copies"),
        ("global_places", "stages.local.cell=0", "`cell of stage 'local'` to be"),
        ("mmgl", "stages.local.ids=images", "`ids` of stage 'local'"),
        ("mmgl", "stages.local.head=null", "both `taps` and `head`"),
        ("moco", "stages.global.copies=3", "two copies"),
        ("mmgl", "stages.global.labelled=1.0", "labels in stage 'global'"),
        ("mmgl", "stages.global.copies=0", "`copies of stage 'global'` to be"),
    ],
)
def test_stages_that_make_no_sense(name: str, change: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        methods.load(config.Method, name, [change])


def test_seeds() -> None:
    assert seeds_of(["0..2", "7", "1"]) == [0, 1, 2, 7]
    with pytest.raises(ValueError, match="seeds"):
        seeds_of(["a"])


def staged(name: str, number: int, *changes: str) -> StageModule:
    method = methods.load(config.Method, name, changes)
    stage = method.stages[number]
    return StageModule(NET(), stage, SCALE.schedules[stage.kind], classes=3, shape=(32, 32), seed=0)


def test_several_processes_take_the_loss_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    for world, said, gathers in (
        (1, [], False),
        (2, [], True),
        (2, ["stages.global.loss.options.gather=false"], False),
    ):
        stage = staged("mmgl", 0, *said)
        monkeypatch.setattr(StageModule, "trainer", SimpleNamespace(world_size=world))
        stage.setup("fit")
        assert stage.loss.options.gather is gathers
        monkeypatch.undo()
    images, stage = torch.rand(4, 1, 32, 32), staged("mmgl", 0)
    assert stage.ids(images, None, {}).tolist() == [0, 1, 0, 1]
    monkeypatch.setattr(StageModule, "global_rank", 1)
    other = stage.ids(images, None, {})
    assert other.unique().numel() == 2
    assert not set(other.tolist()) & {0, 1}


def test_aligned_copies_share_their_geometry() -> None:
    images, labels = torch.rand(3, 1, 32, 32), torch.randint(3, (3, 32, 32))
    stage = staged("semicontrast", 1)
    copies, targets = stage.augmented(images, labels)
    assert targets is not None
    assert torch.equal(*targets.chunk(2))
    assert not torch.equal(targets[:3], labels)
    assert not torch.equal(*copies.chunk(2))
    _, moved = staged("semicontrast", 1, "stages.local.aligned=false").augmented(images, labels)
    assert moved is not None
    assert not torch.equal(*moved.chunk(2))


def test_places_and_slices_as_ids() -> None:
    images = torch.rand(4, 1, 32, 32)
    places = staged("global_local", 1).ids(images, None, {})
    assert places.shape == (4, 32, 32)
    assert all(torch.equal(each, 1 + torch.arange(1024).view(32, 32)) for each in places)
    cells = staged("global_places", 1).ids(images, None, {})
    assert all(
        torch.equal(each, 1 + torch.arange(64).view(8, 8).repeat_interleave(4, 0).repeat_interleave(4, 1))
        for each in cells
    )
    batch = {"position": torch.tensor([0.25, 0.3]), "plane": torch.tensor([0, 2])}
    assert staged("pcl", 0).ids(images, None, batch).tolist() == pytest.approx([0.25, 20.3, 0.25, 20.3])
    assert staged("global", 0).ids(images, None, batch).tolist() == [0, 1, 0, 1]


def test_places_move_with_the_image_unless_copies_are_aligned() -> None:
    stage = staged("global_places", 1, "stages.local.cell=1")
    # An image that shows its own places: in whatever copy, a point must carry the number of the place that it shows.
    shown = (stage.places(torch.empty(3, 1, 32, 32))[:, None] - 1) / 1023
    stage.augment = Augment(Settings(rotation=15.0, zoom=(0.8, 1.3), shift=0.05))
    copies, places = stage.augmented(shown, stage.places(shown))
    assert places is not None
    assert not torch.equal(*places.chunk(2))
    inside = places > 0
    assert 0.6 < inside.float().mean() < 1
    row = ((places - 1) // 32)[inside]
    seen = copies[:, 0][inside] * 1023 / 32
    assert (seen - row - 0.5).abs().quantile(0.9) < 1.0
    images, batch = torch.rand(2, 1, 32, 32), {"position": torch.rand(2), "plane": torch.zeros(2, dtype=torch.long)}
    stage = staged("global_places", 1)
    with patch.object(StageModule, "log"):
        assert stage.training_step({"image": images, "label": torch.zeros(2, 32, 32), **batch}, 0).requires_grad


def test_options_for_each_tap() -> None:
    small = methods.load_all([SMALL])
    for name in ("mmgl", "global_places"):
        method = small[name]
        module = StageModule(NET(), method.stages[1], SCALE.schedules["local"], classes=3, shape=(32, 32), seed=0)
        assert [head.stride for head in module.tapped.heads.values()] == [1, 2, 4]
    with pytest.raises(ValueError, match="`stride` of LocalHead for each of 3 taps"):
        staged("mmgl", 1, "stages.local.head.options.stride={each: [1, 2]}")


def test_positional_contrast_takes_near_slices_for_positives() -> None:
    stage = staged("pcl", 0)
    images, planes = torch.rand(8, 1, 32, 32), torch.zeros(4, dtype=torch.long)
    position = torch.tensor([0.1, 0.15, 0.6, 0.85])
    ours = stage.loss_of(images, stage.ids(images, None, {"position": position, "plane": planes}))
    near = (position.repeat(2)[:, None] - position.repeat(2)).abs() <= 0.35
    z = nn.functional.normalize(stage.tapped(images)[1]["bottleneck"], dim=1)
    logits = (z @ z.T / 0.07).fill_diagonal_(-torch.inf)
    near.fill_diagonal_(False)
    each = logits.logsumexp(1) - logits.where(near, torch.zeros(())).sum(1) / near.sum(1)
    torch.testing.assert_close(ours, each.mean(), rtol=1e-4, atol=1e-4)


def test_a_momentum_queue_follows_and_remembers() -> None:
    class Tapped(nn.Linear):
        def forward(self, x: torch.Tensor) -> Any:
            return None, {"level": super().forward(x)}

    tapped = Tapped(2, 2)
    queue = MomentumQueue(tapped, momentum=0.9, size=5)
    start = queue.teacher.weight.clone()
    with torch.no_grad():
        tapped.weight.add_(1.0)
    queue.follow(tapped)
    torch.testing.assert_close(queue.teacher.weight, start + 0.1)
    batches = [torch.full((2, 2), float(i)) for i in range(4)]
    for i, batch in enumerate(batches):
        keys, ids = queue(batch, torch.tensor([0, 1]))
        past = min(2 * i, 5)
        assert ids.tolist() == [0, 1] + [-1] * past
        expected = torch.cat([queue.teacher(x)[1]["level"] for x in reversed(batches[: i + 1])])[: 2 + past]
        torch.testing.assert_close(keys["level"], expected)
    assert not any(p.requires_grad for p in queue.parameters())


class KilledError(Exception):
    """In place of a signal."""


@pytest.mark.parametrize("name", ["moco", "global_local"])
def test_a_killed_stage_with_more_than_weights_goes_on_alike(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_tree(tmp_path / "tiny", 6)
    chosen = setup.Setup.of(settings(data, name, labelled=1), tmp_path / "cache")
    number = len(chosen.settings.method.stages) - 2
    module.train(chosen, number, None, tmp_path / "whole")
    original = StageModule.training_step

    def dies(self: StageModule, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == 3:
            raise KilledError
        return original(self, batch, index)

    monkeypatch.setattr(StageModule, "training_step", dies)
    with pytest.raises(KilledError):
        module.train(chosen, number, None, tmp_path / "cut")
    monkeypatch.setattr(StageModule, "training_step", original)
    module.train(chosen, number, None, tmp_path / "cut")
    whole, cut = (files.load(tmp_path / folder / "weights.pt") for folder in ("whole", "cut"))
    before = chosen.network(None, None).state_dict()
    moved = {key for key in whole if not torch.equal(whole[key], before[key])}
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert moved
    assert {key.partition(".")[0] for key in moved} == {"encoder" if name == "moco" else "decoder"}


def test_what_is_not_inherited_starts_anew(tmp_path: Path) -> None:
    data = write_tree(tmp_path / "tiny", 4)
    chosen = setup.Setup.of(settings(data, labelled=1), tmp_path / "cache")
    fresh = chosen.network(None, None).state_dict()
    before = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in fresh.items()}
    stage = chosen.settings.method.stages[-1]
    taken = chosen.network(replace(stage, inherits=["encoder"]), before).state_dict()
    for key, value in taken.items():
        assert torch.equal(value, (before if key.startswith("encoder.") else fresh)[key])
    assert all(torch.equal(value, before[key]) for key, value in chosen.network(stage, before).state_dict().items())
