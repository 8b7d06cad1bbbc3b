"""Bad input: one clear sentence of the right type, and nothing touched; the rows are in `bad_input`."""

import re
from collections import Counter
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import mmgl_losses
from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon, plugins
from tests.bad_input import CASES
from tests.problems import IMPLEMENTATIONS


def snapshot(value):
    """Everything of an argument that a call could change, in a form that compares."""
    if isinstance(value, Tensor):
        bits = None if value.is_meta or value.layout != torch.strided else value.detach().clone()
        return value, value.shape, value.stride() if bits is not None else (), value._version, value.requires_grad, bits
    if isinstance(value, nn.Module):
        modules = [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in value.modules()]
        grads = [(p.requires_grad, p.grad is None) for p in value.parameters()]
        return modules, grads, [(name, snapshot(x)) for name, x in value.state_dict(keep_vars=True).items()]
    if isinstance(value, Mapping):
        return [(key, snapshot(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return [snapshot(item) for item in value]
    return value


def same(a, b):
    """The same objects, shapes and bits (NaN included)."""
    if isinstance(a, Tensor):
        return a is b or (
            isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        )
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a is b or a == b


def world(case):
    """Arguments, the object that is called, torch's random state and global switches, and what is registered."""
    owner = getattr(case.call, "__self__", case.call)
    registered = {kind: dict(names) for kind, names in plugins._registered.items()}
    switches = (
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.get_num_threads(),
    )
    state = torch.get_rng_state()
    return [snapshot(case.args), snapshot(case.options), snapshot(owner), state, switches, registered]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.covers}: {case.text[9:60]}")
def test_says_what_is_wrong_and_touches_nothing(case):
    before = world(case)
    with pytest.raises(case.error) as caught:
        case.call(*case.args, **case.options)
    text = str(caught.value)
    assert type(caught.value) is case.error
    assert text.startswith(case.text), text
    assert re.fullmatch(r"Expected .+, got .+\.( .+[.?])?", text), text  # one line: expected, got, and what to do
    for was, now in zip(before, world(case), strict=True):
        assert same(was, now)


def test_every_public_callable_has_bad_input():
    """Everything that can be called, but result types, which users do not make."""
    made_here = {"PairTerms", "Diagnostics", "Loaded", "Stages"}
    public = {name for name, value in vars(mmgl_losses).items() if name[0] != "_" and callable(value)} - made_here
    public |= set(mmgl_losses.functional.__all__) | {"register_loss", "register_head", "create", "available"}
    assert public <= {case.covers for case in CASES}, public - {case.covers for case in CASES}


def test_there_are_many():
    assert len(CASES) >= 250
    doubles = Counter((repr(case.call), case.text, repr(case.args), repr(case.options)) for case in CASES)
    assert [key for key, count in doubles.items() if count > 1] == []


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("make", [MultiScaleGlobalContrast, MultiScaleLocalSupCon, DeepSupervisionDice])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_what_is_not_finite_is_not_hidden(make, impl, value):
    """Not an exception, which mixed precision could not skip: a loss of NaN, which `diagnose` puts into words."""
    if make is DeepSupervisionDice and value < 0:
        return  # a logit of -inf is a probability of 0, which has a loss
    options = {} if make is DeepSupervisionDice else {"impl": impl}
    loss = make(weights={"good": 0.5, "bad": 0.5}, **options)
    good = torch.randn(6, 4) if make is MultiScaleGlobalContrast else torch.randn(2, 3, 5, 5)
    rest = () if make is MultiScaleGlobalContrast else (torch.arange(50).view(2, 5, 5) % 3,)
    bad = good.clone()
    bad.view(-1)[3] = value
    assert loss({"good": good, "bad": bad}, *rest).isnan()
    sentence = loss.diagnose({"good": good, "bad": bad}, *rest).sentence
    assert re.match(
        r"The loss is not finite: look for NaN or infinity in the vectors of \w+\['bad'\] \(1 of them\)", sentence
    )
    assert "not finite" not in loss.diagnose({"good": good, "bad": good}, *rest).sentence


def test_a_key_that_is_not_finite_is_found():
    loss = MultiScaleGlobalContrast(weights=(1.0,))
    rows, keys = torch.randn(2, 4), torch.full((3, 4), torch.nan)
    found = loss.diagnose([rows], torch.arange(2), keys=[keys], key_instances=torch.tensor([0, 1, 2]))
    assert "or their keys" in found.sentence
