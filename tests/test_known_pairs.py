"""The primitive where the answer is known in closed form, at the edges that random problems seldom meet."""

import math

import pytest
import torch

from mmgl_losses.contrast import pair_terms
from mmgl_losses.contrast.tiled import strips, tiles
from tests.problems import IMPLEMENTATIONS


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_ids_exactly_as_far_apart_as_the_tolerance_are_positives(impl, separate, tolerance):
    z, ids = torch.randn(9, 4, dtype=torch.float64), torch.arange(9.0)[torch.randperm(9)]
    keys = {"keys": z, "key_ids": ids, "self_index": torch.arange(9)} if separate else {}
    terms = pair_terms(z, ids, temperature=0.5, tolerance=tolerance, impl=impl, **keys)
    near = [sum(0 < abs(i - j) <= tolerance for j in ids.tolist()) for i in ids.tolist()]
    assert terms.n_positives.tolist() == near
    assert terms.n_negatives.tolist() == [8 - count for count in near]
    logits = z @ z.T / 0.5
    pairs = ((ids - ids[:, None]).abs() <= tolerance) & ~torch.eye(9, dtype=torch.bool)
    torch.testing.assert_close(terms.positive_lse, logits.where(pairs, torch.tensor(-math.inf)).logsumexp(1))
    torch.testing.assert_close(terms.positive_sum, (logits * pairs).sum(1))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("ids", [2, 64], ids=["few", "many"])
def test_many_equal_vectors_do_not_overflow(impl, ids):
    """All n vectors are one unit vector: every logit is 1/τ, and a sum of exponentials is n e^84, beyond float32."""
    n, temperature = 512, 1 / 84
    z = torch.nn.functional.one_hot(torch.zeros(n, dtype=torch.long), 4).float().requires_grad_()
    terms = pair_terms(z, torch.arange(n) % ids, temperature=temperature, bound=1.0, impl=impl)
    positives, negatives = n // ids - 1, n - n // ids
    torch.testing.assert_close(terms.positive_lse, torch.full((n,), 84 + math.log(positives)))
    torch.testing.assert_close(terms.negative_lse, torch.full((n,), 84 + math.log(negatives)))
    (grad,) = torch.autograd.grad((terms.positive_lse - terms.negative_lse).sum(), z)
    assert grad.isfinite().all()


@pytest.mark.parametrize("rows", [4, 64])
@pytest.mark.parametrize("bound", [1.0, None], ids=["shift", "maxima"])
def test_weighted_keys_among_themselves_in_many_tiles(rows, bound, monkeypatch):
    """W + Wᵀ, of mirrored tiles where a shift allows them, against the formula in float64 written out over all pairs."""
    monkeypatch.setattr(tiles, "ROWS", rows)
    monkeypatch.setattr(tiles, "COLUMNS", 2 * rows)
    n = 60
    z = torch.nn.functional.normalize(torch.randn(n, 5, dtype=torch.float64), dim=1).requires_grad_()
    ids, log_weights = torch.arange(n) % 3, torch.randn(n, dtype=torch.float64)
    factor = torch.rand(2, n, dtype=torch.float64)
    terms = pair_terms(z, ids, temperature=0.3, key_log_weights=log_weights, bound=bound, impl="tiled")
    got = torch.autograd.grad((factor[0] * terms.positive_lse - factor[1] * terms.negative_lse).sum(), z)
    logits, lost = z @ z.T / 0.3 + log_weights, torch.tensor(-math.inf, dtype=torch.float64)
    same, other = ids == ids[:, None], ~torch.eye(n, dtype=torch.bool)
    positive = logits.where(same & other, lost).logsumexp(1)
    negative = logits.where(~same, lost).logsumexp(1)
    torch.testing.assert_close((terms.positive_lse, terms.negative_lse), (positive, negative))
    wanted = torch.autograd.grad((factor[0] * positive - factor[1] * negative).sum(), z)
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("strip", [7, 64])
def test_few_classes_in_many_strips(strip, monkeypatch):
    """Orthogonal clusters: with k clusters of m equal unit vectors, logits are 1/τ within and 0 between them."""
    monkeypatch.setattr(strips, "ROWS", strip)
    monkeypatch.setattr(strips, "ELEMENTS", 2 * strip * strip)
    k, m, temperature = 3, 20, 0.5
    ids = torch.arange(k).repeat(m)
    z = torch.nn.functional.one_hot(ids, 4).double().requires_grad_()
    terms = pair_terms(z, ids, temperature=temperature, bound=1.0, impl="tiled")
    n = k * m
    assert terms.n_positives.tolist() == [m - 1] * n
    assert terms.n_negatives.tolist() == [(k - 1) * m] * n
    torch.testing.assert_close(terms.positive_lse, torch.full((n,), 1 / temperature + math.log(m - 1)).double())
    torch.testing.assert_close(terms.negative_lse, torch.full((n,), math.log((k - 1) * m)).double())
    (grad,) = torch.autograd.grad(terms.positive_lse.sum() - 0.5 * terms.negative_lse.sum(), z)
    # Each point pulls with 1/τ in all towards its own cluster, and is pulled as much by it; from the others it has
    # -1/2 · 1/τ, shared equally among them, and as much from them.
    wanted = 2 * z.detach() - (1 - torch.nn.functional.one_hot(ids, 4).double()) * torch.tensor([1.0, 1, 1, 0]) / (
        k - 1
    )
    torch.testing.assert_close(grad, wanted / temperature)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("tolerance", [0.1, 0.3, 0.7])
def test_sums_are_over_the_pairs_that_are_counted(impl, tolerance, monkeypatch):
    """Of zeros every exponential is 1; tenths and their sums are rounded, so i may be near j and j not near i."""
    monkeypatch.setattr(tiles, "ROWS", 4)
    monkeypatch.setattr(tiles, "COLUMNS", 7)
    terms = pair_terms(
        torch.zeros(40, 2), torch.arange(40) / 10, temperature=1.0, tolerance=tolerance, bound=1.0, impl=impl
    )
    torch.testing.assert_close(terms.positive_lse.exp(), terms.n_positives.float())
    torch.testing.assert_close(terms.negative_lse.exp(), terms.n_negatives.float())
    assert len(set(terms.n_positives.tolist())) > 2


@pytest.mark.parametrize("few", [0, 32], ids=["tiles", "strips"])
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_every_result_in_many_parts(few, masked, monkeypatch):
    """Another factor for every anchor, in an order that is not that of the ids, against all pairs written out."""
    for module in (tiles, strips):
        monkeypatch.setattr(module, "ROWS", 5)
    monkeypatch.setattr(tiles, "COLUMNS", 9)
    monkeypatch.setattr(strips, "ELEMENTS", 50)
    monkeypatch.setattr(strips, "CLASSES", few)
    n = 40
    z = torch.nn.functional.normalize(torch.randn(n, 5, dtype=torch.float64), dim=1).requires_grad_()
    ids = (torch.arange(n) % 4)[torch.randperm(n)]
    part = torch.rand(n) > 0.3 if masked else torch.ones(n, dtype=torch.bool)
    masks = {"anchor_mask": part, "key_mask": part} if masked else {}
    factor = torch.rand(3, n, dtype=torch.float64) * part
    terms = pair_terms(z, ids, temperature=0.3, bound=1.0, impl="tiled", **masks)
    results = (terms.positive_lse, terms.negative_lse, terms.positive_sum)
    logits, lost = z @ z.T / 0.3, torch.tensor(-math.inf, dtype=torch.float64)
    same, valid = ids == ids[:, None], ~torch.eye(n, dtype=torch.bool) & part & part[:, None]
    positive, negative = (
        logits.where(same & valid, lost)[part].logsumexp(1),
        logits.where(~same & valid, lost)[part].logsumexp(1),
    )
    wanted = (positive, negative, (logits * (same & valid))[part].sum(1))
    torch.testing.assert_close(tuple(x[part] for x in results), wanted)
    got = sum((f[part] * x[part]).sum() for f, x in zip(factor, results, strict=True))
    expected = sum((f[part] * x).sum() for f, x in zip(factor, wanted, strict=True))
    torch.testing.assert_close(torch.autograd.grad(got, z), torch.autograd.grad(expected, z))
