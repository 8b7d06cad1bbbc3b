"""Methods and scales are data: what the files say, and what a wrong file is told."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from examples.mmwhs.data.augment import AUGMENTATIONS
from examples.mmwhs.data.datasets import Reading
from examples.mmwhs.options import parser, saved_options, settings
from examples.mmwhs.train import config, methods, plain
from mmgl_losses import UNet

METHODS = {name: methods.load(config.Method, name) for name in methods.built_in(config.Method)}
SCALES = {name: methods.load(config.Scale, name) for name in methods.built_in(config.Scale)}


def test_built_in_names() -> None:
    assert set(METHODS) >= {"mmgl", "mmgl_printed", "random"}
    assert set(SCALES) >= {"paper", "small"}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_every_method_fits_the_network_and_every_scale(method: config.Method) -> None:
    net = UNet(1, 3, channels=(2, 2, 2, 2, 2))
    for stage in method.stages:
        assert stage.augmentation in AUGMENTATIONS
        part = net if stage.part == "whole" else net.get_submodule(stage.part)
        for name in stage.taps:
            part.get_submodule(name)
        levels = len(stage.taps) + stage.output
        weights = stage.loss.options["weights"]
        assert len(weights) == levels
        assert sum(weights.values() if isinstance(weights, dict) else weights) == pytest.approx(1.0)
        assert not isinstance(weights, dict) or list(weights) == stage.taps
    for scale in SCALES.values():
        config.Run(data="x", method=method, scale=scale)


@pytest.mark.parametrize("name", ["../up", "a/b", "/etc", ".hidden", "", "a\\b", "..", "a\0", "a b", "-x"])
def test_names_that_become_those_of_files_cannot_lead_elsewhere(name: str, tmp_path: Path) -> None:
    loss = {"name": "DeepSupervisionDice", "options": {"weights": [1.0]}}
    with pytest.raises(ValueError, match=r"the name of a stage to be letters, digits"):
        config.Stage(name=name, kind="finetune", loss=config.Part(**loss))
    one = {"title": "x", "stages": {"finetune": {"kind": "finetune", "loss": loss}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"methods": {name: one}}))
    with pytest.raises(ValueError, match=r"the name of a method to be letters, digits"):
        methods.load_all([tmp_path / "mine.yaml"])


def test_mmgl_is_the_paper() -> None:
    one, two, three = METHODS["mmgl"].stages
    assert (one.part, one.planes, one.labels, one.taps) == ("encoder", "all", False, ["pools.2", "pools.3", "up"])
    assert (two.part, two.planes, two.labels) == ("whole", "all", True)
    assert two.taps == ["decoder.blocks.1", "decoder.blocks.2", "decoder.blocks.3"]
    assert two.head == config.Part("LocalHead", {"stride": 4})
    for stage in (one, two):
        assert stage.loss.options["temperature"] == 0.07
        assert stage.loss.options["weights"] == [0.2, 0.2, 0.6]
    assert (three.planes, three.taps) == ("main", ["decoder.blocks.1", "decoder.blocks.2"])
    assert three.loss.options["weights"] == [0.2, 0.3, 0.5]


def test_printed_differs_in_the_formulas_only() -> None:
    plain, printed = asdict(METHODS["mmgl"]), asdict(METHODS["mmgl_printed"])
    del plain["title"], printed["title"]
    assert [s["loss"]["options"].pop("formula", None) for s in plain["stages"]] == ["nt_xent", "supcon", None]
    assert [s["loss"]["options"].pop("formula", None) for s in printed["stages"]] == ["mmgl", "mmgl", None]
    assert plain == printed


def test_fine_tuning_differs_in_the_levels_only() -> None:
    mmgl, plain = METHODS["mmgl"].stages[-1], METHODS["random"].stages[0]
    assert len(METHODS["random"].stages) == 1
    loss = config.Part(plain.loss.name, {**plain.loss.options, "weights": mmgl.loss.options["weights"]})
    assert replace(plain, taps=mmgl.taps, head=mmgl.head, loss=loss) == mmgl


def test_round_trip_through_yaml() -> None:
    run = config.Run(data="x", method=METHODS["mmgl"], scale=SCALES["small"], labelled=2, seed=5)
    for labelled in (2, 1, 1.0, 0.2):
        given = replace(run, labelled=labelled)
        back = plain.parse(config.Run, yaml.safe_load(plain.to_yaml(given)), where="here")
        assert back == given
        assert type(back.labelled) is type(labelled)  # 1 is a patient, 1.0 all of them


STAGE = {"name": "a", "kind": "finetune", "loss": {"name": "DeepSupervisionDice"}}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"title": "x", "stages": [{**STAGE, "kind": "finetun"}]}, "finetun"),
        ({"title": "x", "stages": [{**STAGE, "plane": "all"}]}, "plane"),
        ({"title": "x", "stages": []}, "last stage is of kind 'finetune'"),
        ({"title": "x", "stages": [{**STAGE, "kind": "local"}]}, "last stage is of kind 'finetune'"),
        ({"title": "x", "stages": [STAGE, STAGE]}, "its own name"),
        ({"stages": [STAGE]}, "title"),
        ("text", "method"),
    ],
)
def test_a_wrong_method_is_told_what_is_wrong(values: object, said: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=said):
        methods.load(config.Method, path)


def test_unknown_names_are_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'mmgl'"):
        methods.load(config.Method, "mmgll")
    with pytest.raises(ValueError, match="no file"):
        methods.load(config.Scale, tmp_path / "none.yaml")


def test_schedules_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple of `every`=3"):
        config.Schedule(steps=10, every=3, batch_size=2, learning_rate=0.1)
    with pytest.raises(ValueError, match="learning_rate"):
        config.Schedule(steps=9, every=3, batch_size=2, learning_rate=0.0)
    scale = replace(SCALES["small"], schedules={"finetune": SCALES["small"].schedules["finetune"]})
    with pytest.raises(ValueError, match="no schedule for"):
        config.Run(data="x", method=METHODS["mmgl"], scale=scale)


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("1", 1), ("0.2", 0.2), ("1.0", 1.0)])
def test_labelled_is_a_count_or_a_fraction(text: str, value: float) -> None:
    args = parser().parse_args(["run", "--data", "x", "--labelled", text])
    assert args.run.labelled == value
    assert type(args.run.labelled) is type(value)


def test_options_and_a_file_make_a_run(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"data": "there", "method": "random", "seed": 3, "num_nodes": 2}))
    words = ["run", "--config", str(path), "--seed", "4", "--precision", "bf16-mixed"]
    args = parser(saved_options(words)).parse_args(words).run
    run = settings(args, methods.load(config.Method, args.method), args.data)
    assert (run.method, run.seed, Path(run.data).name) == (METHODS["random"], 4, "there")
    assert run.compute == config.Compute(num_nodes=2, precision="bf16-mixed")


def test_the_configuration_that_a_run_has_saved_makes_it_again(tmp_path: Path) -> None:
    method = methods.load(config.Method, "mmgl_places", ["stages.local.cell=2"])
    run = config.Run(
        data=str(tmp_path), method=method, scale=SCALES["volume"], labelled=2, seed=5,
        reading=Reading(patients="(p.)", planes=["coronal"]), compute=config.Compute("cpu", workers=1),
    )  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(plain.to_yaml(run))
    for words, changes in (([], {}), (["--seed", "6"], {"seed": 6})):
        words = ["run", "--config", str(path), *words]
        args = parser(saved_options(words)).parse_args(words).run
        assert settings(args, methods.load(config.Method, args.method), args.data) == replace(run, **changes)
    with pytest.raises(ValueError, match="none.yaml of --config, got no such file"):
        saved_options(["run", "--config=none.yaml"])
