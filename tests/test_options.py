"""Every option of a loss is written down in its options, its function and its module, and nowhere else."""

import ast
import dataclasses
import inspect
from pathlib import Path

import pytest

import mmgl_losses
from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon
from mmgl_losses.functional import global_contrast, local_supcon, soft_dice
from mmgl_losses.losses.dice import DiceOptions
from mmgl_losses.losses.global_contrast import GlobalOptions
from mmgl_losses.losses.local_supcon import LocalOptions

LOSSES = {
    GlobalOptions: (global_contrast, MultiScaleGlobalContrast),
    LocalOptions: (local_supcon, MultiScaleLocalSupCon),
    DiceOptions: (soft_dice, DeepSupervisionDice),
}


@pytest.mark.parametrize("options", LOSSES)
def test_function_and_module_have_the_options_and_their_defaults(options):
    function, module = LOSSES[options]
    wanted = {field.name: field.default for field in dataclasses.fields(options)}
    for face, beside in ((function, set()), (module, {"weights"})):
        parameters = inspect.signature(face).parameters.values()
        found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        inputs = found.keys() - wanted.keys() - beside
        assert inputs <= {"keys", "key_instances"}, inputs  # tensors of a step, not options
        assert {name: found[name] for name in wanted} == wanted
        assert [name for name in found if name in wanted] == list(wanted)  # in one order
        for name in wanted:
            assert f"        {name}: " in inspect.getdoc(face).replace("\n    ", "\n        "), (face, name)
    assert dataclasses.asdict(module().options) == wanted


@pytest.mark.parametrize("options", LOSSES)
def test_an_option_stands_in_two_signatures(options):
    """Those of the function and of the module; whoever else needs it takes the options as they are."""
    names = {field.name for field in dataclasses.fields(options)} - {
        "impl",
        "temperature",
        "tolerance",
        "gather",
        "batch",
    }
    signatures = dict.fromkeys(names, 0)
    for path in Path(mmgl_losses.__file__).parent.joinpath("losses").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for argument in [*node.args.args, *node.args.kwonlyargs]:
                    if argument.arg in names and path.name == Path(inspect.getfile(options)).name:
                        signatures[argument.arg] += 1
    # `ignore_index` is also what the check of Dice's labels is about.
    assert {name: n for name, n in signatures.items() if n > 2} in ({}, {"ignore_index": 3})


@pytest.mark.parametrize("options", LOSSES)
def test_options_check_themselves_and_stay_as_they_are(options):
    made = options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.gather = True
    with pytest.raises(TypeError, match="Expected `gather` to be True or False"):
        options(gather=1)
    with pytest.raises(TypeError, match="Expected `gather` to be True or False"):
        dataclasses.replace(made, gather="yes")


def test_a_module_checks_its_options_once():
    """A step takes them as they are."""
    loss, counted = MultiScaleLocalSupCon(), 0
    import torch

    from mmgl_losses import checks

    real = checks.one_of

    def counting(*arguments):
        nonlocal counted
        counted += 1
        return real(*arguments)

    checks.one_of = counting
    try:
        loss([torch.randn(1, 4, n, n) for n in (2, 4, 8)], torch.randint(2, (1, 16, 16)))
    finally:
        checks.one_of = real
    assert counted == 0
