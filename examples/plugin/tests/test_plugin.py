"""What mmgl-losses expects of a loss, a head and a formula; then what this plug-in promises beyond that."""

from functools import partial

import pytest
import torch
from mmgl_focal_plugin import BottleneckHead, Focal, FocalLocalContrast

from mmgl_losses import PairTerms, plugins, testing


def test_the_loss_keeps_the_laws():
    testing.check_loss(FocalLocalContrast, kind="local")


def test_the_head_keeps_the_laws():
    testing.check_head(partial(BottleneckHead, stride=2))


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_the_formula_keeps_the_laws(gamma):
    testing.check_formula(Focal(gamma))


def test_both_are_found_by_name():
    assert isinstance(plugins.create("loss", "FocalLocalContrast", gamma=1.0), FocalLocalContrast)
    assert isinstance(plugins.create("head", "BottleneckHead", 16), BottleneckHead)


def test_the_formula_is_the_focal_loss():
    q, count = torch.tensor([0.1, 0.5, 0.9]), torch.ones(3, dtype=torch.int64)
    terms = PairTerms(q.log(), (1 - q).log(), q.log(), torch.zeros(3), count, count)
    torch.testing.assert_close(Focal(2.0)(terms), -((1 - q) ** 2) * q.log())
