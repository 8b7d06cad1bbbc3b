"""Losses and heads by name: the package's, registered ones, and those of distributions."""

from importlib.metadata import EntryPoint

import pytest
import torch

import mmgl_losses
from mmgl_losses import plugins


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(plugins, "_registered", {"loss": {}, "head": {}})


class Distribution:
    def __init__(self, name):
        self.name = name


@pytest.fixture
def installed(monkeypatch):
    """Entry points as (name, value, distribution) of installed distributions."""

    def install(kind, *points):
        found = []
        for name, value, owner in points:
            point = EntryPoint(name, value, plugins.GROUPS[kind])
            vars(point).update(dist=Distribution(owner))
            found.append(point)
        monkeypatch.setattr(plugins, "entry_points", lambda group: found if group == plugins.GROUPS[kind] else [])

    return install


@pytest.mark.parametrize("name", ["MultiScaleGlobalContrast", "MultiScaleLocalSupCon", "DeepSupervisionDice"])
def test_own_losses(name):
    loss = plugins.create("loss", name, weights=(0.5, 0.5))
    assert type(loss) is getattr(mmgl_losses, name)
    assert loss.weights == (0.5, 0.5)


def test_own_heads():
    assert plugins.create("head", "LocalHead", 8, 4, stride=2)(torch.zeros(1, 8, 6, 6)).shape == (1, 4, 3, 3)
    assert set(plugins.available("head")) == {"GlobalHead", "LocalHead", "SegmentationHead"}


def test_registered():
    plugins.register_loss("Mine", dict)
    plugins.register_head("Mine", list)
    assert plugins.create("loss", "Mine", a=1) == {"a": 1}
    assert plugins.create("head", "Mine", "ab") == ["a", "b"]
    assert "Mine" in plugins.available("loss")


def test_installed_is_loaded_when_created(installed):
    installed(
        "loss", ("Theirs", "collections:OrderedDict", "their-package"), ("Broken", "no_such_module:x", "bad-package")
    )
    assert plugins.create("loss", "Theirs", a=1) == {"a": 1}
    assert {"Theirs", "Broken"} <= set(plugins.available("loss"))
    with pytest.raises(RuntimeError, match="the loss 'Broken' of bad-package to load from no_such_module:x"):
        plugins.create("loss", "Broken")


def test_two_distributions_with_one_name(installed):
    installed("head", ("Twice", "builtins:dict", "one-package"), ("Twice", "builtins:list", "other-package"))
    with pytest.raises(
        ValueError, match="one distribution to offer the head 'Twice', got it from one-package and other-package"
    ):
        plugins.available("head")


def test_a_name_of_the_package_cannot_be_replaced(installed):
    installed("head", ("LocalHead", "builtins:dict", "bold-package"))
    with pytest.raises(ValueError, match="got it from mmgl-losses and bold-package"):
        plugins.available("head")
