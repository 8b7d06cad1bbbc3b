"""Every formula against loops and closed forms of others."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgl_losses import MultiScaleLocalSupCon
from mmgl_losses.functional import global_contrast, local_supcon
from mmgl_losses.sampling import foreground_places, subsample
from tests import oracles
from tests.problems import IMPLEMENTATIONS
from tests.strategies import label_vectors, matrices, unit_rows

GLOBAL = {"nt_xent": "nt_xent", "decoupled": "decoupled", "mmgl": "mmgl_global"}
LOCAL = {"supcon": "supcon", "supcon_in": "supcon_in", "mmgl": "mmgl_local"}
TAU = 0.5


def value_and_gradient(loss, x):
    x = x.detach().clone().requires_grad_()
    value = loss(x)
    return value.detach(), torch.autograd.grad(value, x)[0]


def expected_value_and_gradient(loss, x):
    x = x.detach().clone().requires_grad_()
    value = loss(F.normalize(x, dim=-1))
    if value is None:
        return torch.zeros((), dtype=x.dtype), torch.zeros_like(x)
    return value.detach(), torch.autograd.grad(value, x)[0]


def as_map(z):
    """Points (n, d) as a one-dimensional map (1, d, n)."""
    return z.T[None]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("formula", GLOBAL)
@given(data=st.data(), tau=st.sampled_from([0.07, 0.5]))
def test_global_matches_loops(formula, impl, data, tau):
    n = data.draw(st.integers(2, 8))
    z, instances = data.draw(unit_rows(n, 3)), data.draw(label_vectors(n, 4))
    got = value_and_gradient(lambda x: global_contrast(x, instances, temperature=tau, formula=formula, impl=impl), z)
    wanted = expected_value_and_gradient(
        lambda x: oracles.contrastive_loss(GLOBAL[formula], x, instances.tolist(), temperature=tau), z
    )
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("formula", LOCAL)
@given(data=st.data(), background=st.sampled_from(["anchor", "key", "ignore"]), ignore=st.sampled_from([None, 2]))
def test_local_matches_loops(formula, impl, data, background, ignore):
    n = data.draw(st.integers(1, 8))
    z, labels = data.draw(unit_rows(n, 3)), data.draw(label_vectors(n, 4))
    part = [i for i in range(n) if int(labels[i]) != ignore]
    foreground = [i for i in part if labels[i] != 0]
    anchors = part if background == "anchor" else foreground
    keys = foreground if background == "ignore" else part
    options = {"formula": formula, "background": background, "ignore_index": ignore, "impl": impl}
    got = value_and_gradient(lambda x: local_supcon(as_map(x), labels[None], temperature=TAU, **options), z)
    wanted = expected_value_and_gradient(
        lambda x: oracles.contrastive_loss(
            LOCAL[formula], x, labels.tolist(), temperature=TAU, anchors=anchors, keys=keys
        ),
        z,
    )
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-9)


@given(data=st.data())
def test_pair_scopes_match_loops(data):
    """`image`: mean over images of their own loss; `augmentations`, `batch`: the points of several images at once."""
    x = torch.stack([data.draw(unit_rows(4, 2)) for _ in range(4)])
    y = torch.stack([data.draw(label_vectors(4, 2)) for _ in range(4)])
    groups = {
        "image": [[0], [1], [2], [3]],
        "augmentations": [[0, 2], [1, 3]],
        "batch": [[0, 1, 2, 3]],
    }
    for pairs, rows in groups.items():
        losses = []
        for group in rows:
            z = F.normalize(x[group].flatten(0, 1), dim=-1)
            loss = oracles.contrastive_loss("supcon", z, y[group].flatten().tolist(), temperature=TAU)
            losses += [] if loss is None else [loss]
        expected = torch.stack(losses).mean() if losses else torch.zeros((), dtype=x.dtype)
        got = local_supcon(x.mT, y, temperature=TAU, pairs=pairs)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    by_name = local_supcon(x.mT, y, [7, 5, 7, 5], temperature=TAU, pairs="augmentations")
    torch.testing.assert_close(by_name, local_supcon(x.mT, y, temperature=TAU, pairs="augmentations"))


def test_unsupervised_local_contrast_is_the_position_as_label():
    """Chaitanya et al.: the same place in two aligned augmentations is the one positive."""
    first, second = torch.randn(2, 1, 3, 5, 5, dtype=torch.float64)
    positions = torch.arange(25).reshape(1, 5, 5).expand(2, -1, -1)
    got = local_supcon(torch.cat([first, second]), positions, temperature=TAU, pairs="augmentations")
    z = torch.cat([first.flatten(2)[0].T, second.flatten(2)[0].T])
    torch.testing.assert_close(got, global_contrast(z, temperature=TAU))


def test_momentum_keys_are_info_nce():
    """MoCo: one positive key per query, a queue of negatives."""
    query, positive, queue = torch.randn(4, 8), torch.randn(4, 8), torch.randn(10, 8)
    keys = torch.cat([positive, queue])
    logits = F.normalize(query, dim=1) @ F.normalize(keys, dim=1).T / TAU
    expected = F.cross_entropy(logits, torch.arange(4))
    identity = torch.arange(14)
    got = global_contrast(query, identity[:4], keys=keys, key_instances=identity, temperature=TAU)
    torch.testing.assert_close(got, expected)


def test_positional_contrast():
    """Zeng et al.: slices at most a tolerance apart are positives."""
    z, position = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0.0, 0.125, 0.25, 0.5, 0.875, 1.0])
    got = global_contrast(z, position, tolerance=0.125, temperature=TAU)
    unit, losses = F.normalize(z, dim=1), []
    for i in range(6):
        s = {j: (unit[i] @ unit[j] / TAU) for j in range(6) if j != i}
        near = [j for j in s if abs(position[i] - position[j]) <= 0.125]
        if near:
            losses.append(sum(torch.stack(list(s.values())).logsumexp(0) - s[j] for j in near) / len(near))
    torch.testing.assert_close(got, torch.stack(losses).mean())


def test_a_callable_is_a_formula():
    z, y = torch.randn(1, 3, 12), torch.randint(3, (1, 12))
    named = local_supcon(z, y, formula="supcon_in")
    own = local_supcon(
        z, y, formula=lambda t: torch.logaddexp(t.positive_lse, t.negative_lse) - t.positive_lse + t.n_positives.log()
    )
    torch.testing.assert_close(own, named)


def test_a_callable_that_is_wild_on_empty_anchors_cannot_leak():
    """0 * NaN: the gradient of a formula on anchors that are not valid must not reach the features."""
    z = torch.randn(1, 3, 5, requires_grad=True)
    labels = torch.tensor([[0, 0, 0, 1, 2]])  # 1 and 2 have no positives

    def wild(terms):
        return (terms.negative_lse - terms.positive_lse) / (terms.n_positives - 0).to(z.dtype).sqrt()

    loss = local_supcon(z, labels, formula=wild)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


# Sampling, types and compilation (the laws are in `test_laws`)


@pytest.mark.parametrize("shape", [(12,), (9, 10), (5, 6, 7)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_stride_is_sampling_first(shape, stride):
    features, labels = torch.randn(2, 3, *shape), torch.randint(3, (2, *(2 * n for n in shape)))
    got = local_supcon(features, labels, stride=stride)
    torch.testing.assert_close(got, local_supcon(subsample(features, stride), labels))


def test_foreground_sampling_keeps_the_only_pixels():
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[0, 0, 0] = labels[0, 9, 9] = 1
    features = torch.randn(1, 3, 16, 16)
    anchors = {}
    for sampling in ("grid", "foreground"):
        loss = MultiScaleLocalSupCon(weights=(1.0,), stride=4, sampling=sampling, background="key", temperature=TAU)
        anchors[sampling] = sum(loss.diagnose([features], labels).levels[0].valid.values())
    assert anchors == {"grid": 0, "foreground": 2}
    chosen = foreground_places(labels, (4, 4), excluded=(0,))
    assert (labels.flatten(1).gather(1, chosen) == 1).sum() == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features(dtype):
    """A result in float32, as exact as its inputs allow, at a temperature where float16 would overflow."""
    features, labels = torch.randn(2, 8, 10, 10).to(dtype), torch.randint(3, (2, 40, 40))
    got = local_supcon(features, labels)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), local_supcon(features.double(), labels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("which", ["global", "local"])
def test_compiles_whole(which):
    x, y = torch.randn(2, 8, 12, 12), torch.randint(3, (2, 48, 48))
    run = (
        (lambda x: local_supcon(x, y, background="key"))
        if which == "local"
        else (lambda x: global_contrast(x.flatten(1)))
    )
    got = value_and_gradient(torch.compile(run, fullgraph=True, backend="aot_eager"), x)
    torch.testing.assert_close(got, value_and_gradient(run, x))


@settings(max_examples=5)
@given(x=matrices(6, 3), labels=label_vectors(6))
def test_gradcheck(x, labels):
    x[:, 0] += (x.norm(dim=1) < 0.5) * 2
    for formula in LOCAL:
        assert torch.autograd.gradcheck(
            lambda x, formula=formula: local_supcon(as_map(x), labels[None], temperature=TAU, formula=formula),
            x.requires_grad_(),
        )
