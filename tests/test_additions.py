"""What is added takes one place: a formula, a loss, a head and an engine each work everywhere after one registration."""

from unittest.mock import patch

import pytest
import torch
from torch import nn

from mmgl_losses import (
    MultiScaleGlobalContrast,
    MultiScaleLocalSupCon,
    UNet,
    attach_heads,
    losses,
    networks,
    pair_logsumexp,
    plugins,
)
from mmgl_losses.contrast import engines, reference
from mmgl_losses.functional import global_contrast, local_supcon, pair_terms
from mmgl_losses.losses import formulas
from mmgl_losses.testing import check_formula, check_head, check_loss

FEATURES, LABELS = torch.randn(2, 4, 6, 6), torch.randint(3, (2, 12, 12))
EMBEDDINGS = torch.randn(8, 5)


def compiled(function):
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, backend="aot_eager")


def margin(terms):
    """A formula: the negatives against the mean of the positives, with a margin."""
    return terms.negative_lse - terms.positive_sum / terms.n_positives + 0.1


@pytest.mark.parametrize("impl", ["auto", "reference", "tiled"])
def test_a_formula(impl):
    tables = patch.dict(formulas.GLOBAL_FORMULAS, margin=margin), patch.dict(formulas.LOCAL_FORMULAS, margin=margin)
    with tables[0], tables[1]:
        options = {"formula": "margin", "impl": impl}
        for function, arguments, module, levels in (
            (global_contrast, (EMBEDDINGS,), MultiScaleGlobalContrast, ([EMBEDDINGS],)),
            (local_supcon, (FEATURES, LABELS), MultiScaleLocalSupCon, ([FEATURES], LABELS)),
        ):
            plain = {"formula": "decoupled"} if function is global_contrast else {"formula": formulas.decoupled}
            value = function(*arguments, **options)
            torch.testing.assert_close(value, function(*arguments, **plain) + 0.1)
            torch.testing.assert_close(function(*arguments, formula=margin), value)
            loss = module(weights=(1.0,), **options)
            torch.testing.assert_close(loss(*levels), value)
            torch.testing.assert_close(compiled(loss)(*levels), value)
            assert loss.diagnose(*levels).levels[0].loss == pytest.approx(value.item())
            assert "margin" in repr(loss)
        assert "attraction" in check_formula(margin)
    with pytest.raises(ValueError, match="Expected `formula` to be one of"):
        global_contrast(EMBEDDINGS, formula="margin")


class Quadratic(nn.Module):
    """A loss: the weighted mean of squares."""

    def __init__(self, *, weights=(1.0,)):
        super().__init__()
        self.weights = weights

    def forward(self, features, labels):
        values = list(features.values()) if isinstance(features, dict) else features
        if len(values) != len(self.weights):
            raise ValueError("Expected as many levels as weights.")
        return sum(w * x.float().square().mean() for x, w in zip(values, self.weights, strict=True) if w)


def test_a_loss():
    with patch.dict(losses.LOSSES, Quadratic=Quadratic):
        assert "Quadratic" in plugins.available("loss")
        loss = plugins.create("loss", "Quadratic", weights=(0.5,))
        torch.testing.assert_close(loss([FEATURES], LABELS), 0.5 * FEATURES.square().mean())
        torch.testing.assert_close(compiled(loss)([FEATURES], LABELS), 0.5 * FEATURES.square().mean())
        with pytest.raises(ValueError, match="It is taken"):
            plugins.register_loss("Quadratic", Quadratic)
        assert "mapping" in check_loss(Quadratic, kind="local", spatial_dims=(2,), levels=1)
    assert "Quadratic" not in plugins.available("loss")


class Corner(nn.Module):
    """A head: the first element of each channel."""

    def __init__(self, in_channels):
        super().__init__()
        self.linear = nn.Linear(in_channels, 3)

    def forward(self, x):
        return self.linear(x.flatten(2)[..., 0])


def test_a_head():
    with patch.dict(networks.HEADS, Corner=Corner):
        assert "Corner" in plugins.available("head")
        assert plugins.create("head", "Corner", 7).linear.in_features == 7
        net, image = UNet(1, 2, channels=(4, 8)), torch.randn(2, 1, 8, 8)
        tapped = attach_heads(net, image, {"encoder.bottleneck": Corner})
        value = tapped(image)[1]["encoder.bottleneck"]
        assert value.shape == (2, 3)
        torch.testing.assert_close(compiled(tapped)(image)[1]["encoder.bottleneck"], value)
        with pytest.raises(ValueError, match="It is taken"):
            plugins.register_head("Corner", Corner)
        assert "shape" in check_head(Corner)
    assert "Corner" not in plugins.available("head")


class Counting:
    """An engine: the reference, which counts its calls."""

    NORMALISES = False

    def __init__(self):
        self.calls = []

    def refuses(self, problem):
        return "Expected few anchors." if problem.ids.shape[1] > 1000 else None

    def suits(self, problem):
        return False

    def forward(self, problem):
        self.calls.append("forward")
        return reference.forward(problem)

    def backward(self, problem, upstream, needed):
        self.calls.append("backward")
        return reference.backward(problem, upstream, needed)


def test_an_engine():
    counting = Counting()
    with patch.dict(engines.ENGINES, counting=counting):
        for function, x, rest in (
            (global_contrast, EMBEDDINGS, ()),
            (local_supcon, FEATURES, (LABELS,)),
            (lambda x, **o: MultiScaleGlobalContrast(weights=(1.0,), **o)([x]), EMBEDDINGS, ()),
            (lambda x, y, **o: MultiScaleLocalSupCon(weights=(1.0,), **o)([x], y), FEATURES, (LABELS,)),
            (lambda x, i, **o: pair_logsumexp(x, i, temperature=1.0, **o).negatives.sum(), EMBEDDINGS, (torch.arange(8) % 2,)),
            (lambda x, i, **o: pair_terms(x, i, temperature=1.0, **o).negative_lse.sum(), EMBEDDINGS, (torch.arange(8) % 2,)),
        ):  # fmt: skip
            for run in (function, compiled(lambda x, *rest, f=function, **o: f(x, *rest, **o))):
                results = []
                for impl in ("reference", "counting"):
                    counting.calls.clear()
                    leaf = x.clone().requires_grad_()
                    value = run(leaf, *rest, impl=impl)
                    results.append((value, *torch.autograd.grad(value, leaf)))
                assert counting.calls == ["forward", "backward"]
                torch.testing.assert_close(*results)
        with pytest.raises(ValueError, match="Expected few anchors"):
            global_contrast(torch.randn(1002, 2), impl="counting")
        mine = torch.func.vmap(lambda x: global_contrast(x, impl="counting"))(EMBEDDINGS[None])
        torch.testing.assert_close(mine[0], global_contrast(EMBEDDINGS))
    with pytest.raises(ValueError, match="Expected `impl` to be one of"):
        global_contrast(EMBEDDINGS, impl="counting")


def test_an_engine_that_suits_is_taken_unasked():
    counting = Counting()
    counting.suits = lambda problem: problem.ids.shape[1] == 8
    first = {"counting": counting, **engines.ENGINES}
    with patch.dict(engines.ENGINES, first, clear=True):
        global_contrast(EMBEDDINGS)
        assert counting.calls == ["forward"]
        global_contrast(EMBEDDINGS[:6])
        assert counting.calls == ["forward"]
