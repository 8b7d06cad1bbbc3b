"""Unit vectors of points of any length, and the gradient through them, in each engine that makes them itself."""

import pytest
import torch

from mmgl_losses import contrast
from mmgl_losses.contrast.unit import normalise
from tests.problems import IMPLEMENTATIONS


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e20, 1e38])
def test_normalise_at_any_length(scale):
    x = torch.randn(20, 7, dtype=torch.float64)
    x = x / x.abs().amax(1, keepdim=True)
    expected = x / x.norm(dim=1, keepdim=True)
    torch.testing.assert_close(normalise((x * scale).float()).double(), expected, rtol=1e-5, atol=1e-6)


def test_normalise_half_precision_does_not_overflow():
    x = torch.full((1, 64), 3e4, dtype=torch.float16)
    torch.testing.assert_close(normalise(x), torch.full((1, 64), 1 / 8))


def test_normalise_of_zero_is_zero_with_zero_gradient():
    x = torch.zeros(2, 3, requires_grad=True)
    z = normalise(x)
    z.sum().backward()
    assert (z == 0).all()
    assert (x.grad == 0).all()


def test_normalise_gradcheck():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalise, x)


def terms_and_gradients(points, impl, *, made, **options):
    """The terms of unit vectors that the engine makes, or that were made for it, and the gradients of a mixture."""
    x, keys = (None if p is None else p.clone().requires_grad_() for p in points)
    given = {"temperature": 0.1, "bound": 1.0, "precision": x.dtype, **options}
    if made:
        z, k = normalise(x), None if keys is None else normalise(keys)
    else:
        z, k, given["unit"] = x, keys, True
    terms = contrast.terms(contrast.pose(z, keys=k, **given), impl)
    mixture = (terms.negative_lse.sin() + terms.positive_lse.cos() + terms.positive_sum.sin()).sum()
    return *terms, *torch.autograd.grad(mixture, [p for p in (x, keys) if p is not None])


@pytest.mark.parametrize("impl", ["auto", *IMPLEMENTATIONS])
@pytest.mark.parametrize("form", ["own", "separate", "masked"])
@pytest.mark.parametrize(("n", "d"), [(5, 3), (40, 17), (130, 64)])
def test_engines_make_unit_vectors_as_normalise_does(impl, form, n, d):
    points = torch.randn(2, n, d, dtype=torch.float64) * torch.logspace(-3, 3, n, dtype=torch.float64)[:, None]
    points[:, 1] = 0.0  # no direction: no gradient
    ids = torch.arange(n).expand(2, -1) % 3
    keys, options = None, {"ids": ids}
    if form == "separate":
        keys = torch.randn(2, n + 4, d, dtype=torch.float64) * 7
        options |= {"key_ids": torch.arange(n + 4).expand(2, -1) % 3, "self_index": torch.arange(n).expand(2, -1)}
    if form == "masked":
        options |= {
            "anchor_mask": torch.arange(n).expand(2, -1) % 5 != 4,
            "key_mask": torch.arange(n).expand(2, -1) % 7 != 6,
        }
        points = contrast.select(points, options["anchor_mask"] | options["key_mask"])
    wanted = terms_and_gradients((points, keys), "reference", made=True, **options)
    torch.testing.assert_close(
        terms_and_gradients((points, keys), impl, made=False, **options), wanted, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("impl", ["auto", *IMPLEMENTATIONS])
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e20, 1e38])
def test_engines_make_unit_vectors_of_any_length(impl, scale):
    x = torch.randn(1, 20, 7, dtype=torch.float64)
    x = x / x.abs().amax(-1, keepdim=True)
    options = {"ids": torch.arange(20)[None] % 4}
    wanted = terms_and_gradients((x, None), "reference", made=True, **options)[:3]
    got = terms_and_gradients(((x * scale).float(), None), impl, made=False, **options)[:3]
    torch.testing.assert_close([t.double() for t in got], list(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("impl", ["auto", *IMPLEMENTATIONS])
def test_infinity_and_nan_reach_the_loss(impl):
    for bad in (torch.inf, torch.nan):
        x = torch.randn(1, 20, 7)
        x[0, 3, 2] = bad
        terms = terms_and_gradients((x, None), impl, made=False, ids=torch.arange(20)[None] % 4)
        assert terms[1].isnan().any()
