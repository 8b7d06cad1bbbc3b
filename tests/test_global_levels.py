"""The global loss in its usual form: few rows in two halves, at several levels at once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from mmgl_losses import MultiScaleGlobalContrast
from mmgl_losses.functional import global_contrast
from tests import oracles
from tests.problems import IMPLEMENTATIONS
from tests.strategies import unit_rows

FORMULAS = {"nt_xent": "nt_xent", "decoupled": "decoupled", "mmgl": "mmgl_global"}


def all_terms(terms):
    """A formula that looks at everything."""
    mixed = torch.logaddexp(terms.negative_lse, terms.self_logit) + terms.positive_lse * terms.positive_sum
    return mixed / terms.n_negatives + terms.n_positives * terms.self_logit


def value_and_gradients(loss, levels):
    levels = [level.clone().requires_grad_() for level in levels]
    value = loss(levels)
    return value, *torch.autograd.grad(value, levels, allow_unused=True)


@pytest.mark.parametrize("formula", FORMULAS)
@given(data=st.data(), half=st.integers(2, 4), tau=st.sampled_from([0.07, 0.5]))
def test_matches_loops(formula, data, half, tau):
    z = data.draw(unit_rows(2 * half, 3)).requires_grad_()
    got = global_contrast(z, temperature=tau, formula=formula)
    x = torch.nn.functional.normalize(z, dim=1)
    wanted = oracles.contrastive_loss(FORMULAS[formula], x, [*range(half)] * 2, temperature=tau)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-9)
    gradients = [torch.autograd.grad(value, z)[0] for value in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("formula", [*FORMULAS, all_terms, lambda terms: terms.self_logit, lambda t: -t.positive_lse])
@pytest.mark.parametrize("impl", ["auto", *IMPLEMENTATIONS])
def test_levels_at_once_are_levels_one_by_one(formula, impl):
    """Levels of several widths are one problem; one of weight 0 holds NaN."""
    levels = [torch.randn(8, width, dtype=torch.float64) for width in (5, 5, 7, 3)]
    levels[2].fill_(torch.nan)
    options = {"temperature": 0.2, "formula": formula}
    loss = MultiScaleGlobalContrast(weights=(0.1, 0.2, 0.0, 0.7), impl=impl, **options)
    got = value_and_gradients(loss, levels)

    def one_by_one(levels):
        single = (global_contrast(levels[i], **options) for i in (0, 1, 3))
        return sum(weight * value for weight, value in zip((0.1, 0.2, 0.7), single, strict=True))

    torch.testing.assert_close(got, value_and_gradients(one_by_one, levels), rtol=1e-12, atol=1e-12)


def test_levels_of_several_types_meet_in_the_widest():
    levels = [torch.randn(8, 5).half(), torch.randn(8, 5), torch.randn(8, 5).double()]
    value = MultiScaleGlobalContrast()(levels)
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, MultiScaleGlobalContrast()([level.double() for level in levels]))


def test_compiles_whole_and_once():
    counter = CompileCounterWithBackend("aot_eager")
    loss = MultiScaleGlobalContrast(formula="mmgl")
    compiled = torch.compile(loss, fullgraph=True, backend=counter)
    for _ in range(3):
        levels = [torch.randn(8, 5) for _ in range(3)]
        torch.testing.assert_close(value_and_gradients(compiled, levels), value_and_gradients(loss, levels))
    assert counter.frame_count == 1


@pytest.mark.parametrize("tau", [0.0132, 0.07, 1.0])
def test_range(tau):
    """Embeddings as far apart and as close as can be, in float32: no overflow, no underflow."""
    z = torch.cat([torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0], [1.0, 1e-3]])] * 2)
    got = value_and_gradients(lambda x: global_contrast(x[0], temperature=tau), [z])
    wanted = value_and_gradients(lambda x: global_contrast(x[0], temperature=tau, impl="reference"), [z.double()])
    torch.testing.assert_close(got, tuple(x.float() for x in wanted), rtol=1e-4, atol=1e-6)


def test_products_stay_wide_under_autocast():
    z = torch.randn(8, 16)
    expected = value_and_gradients(lambda x: global_contrast(x[0]), [z])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(value_and_gradients(lambda x: global_contrast(x[0]), [z]), expected)


def test_rows_without_a_direction_and_nan():
    z = torch.randn(8, 4)
    z[1] = 0
    loss, gradient = value_and_gradients(lambda x: global_contrast(x[0]), [z])
    assert loss.isfinite()
    assert gradient.isfinite().all()
    z[1] = torch.nan
    assert global_contrast(z).isnan()  # for mixed precision to see


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e30])
def test_huge_and_tiny_embeddings(scale):
    """Neither their squares nor their lengths leave the range; the gradient is that of the same rows of length one."""
    levels = [torch.randn(8, 4).clamp(min=0.1) * scale for _ in range(2)]
    levels[0][3] = torch.tensor([scale, 0, 0, 0])  # already along an axis
    got = value_and_gradients(MultiScaleGlobalContrast(weights=(0.3, 0.7)), levels)
    wanted = value_and_gradients(MultiScaleGlobalContrast(weights=(0.3, 0.7)), [level.double() for level in levels])
    torch.testing.assert_close(got[0], wanted[0].float())
    if scale > 1e-40:  # a gradient of 1e42 is beyond float32
        torch.testing.assert_close(got[1:], tuple(x.float() for x in wanted[1:]), rtol=1e-4, atol=1e-6 / scale)


def test_functional_gradients():
    z = torch.randn(8, 4)
    gradient = torch.func.grad(global_contrast)(z)
    torch.testing.assert_close(gradient, value_and_gradients(lambda x: global_contrast(x[0]), [z])[1])
