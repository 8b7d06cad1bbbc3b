"""Every formula against loops, and the laws that hold for contrastive losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mmgl_losses import formulas
from mmgl_losses.functional import global_contrast, local_supcon, local_terms
from mmgl_losses.sampling import foreground_places, subsample
from tests import oracles
from tests.strategies import label_vectors, matrices, unit_rows

GLOBAL = {"nt_xent": "nt_xent", "decoupled": "decoupled", "mmgl": "mmgl_global"}
LOCAL = {"supcon": "supcon", "supcon_in": "supcon_in", "mmgl": "mmgl_local"}
IMPLEMENTATIONS = ["reference", "tiled"]
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


# Laws ------------------------------------------------------------------------------------------------------------

cases = [("global", name) for name in GLOBAL] + [("local", name) for name in LOCAL]


def loss_of(kind, formula, z, ids, impl="tiled", tau=TAU):
    if kind == "global":
        return global_contrast(z, ids, temperature=tau, formula=formula, impl=impl)
    return local_supcon(as_map(z), ids[None], temperature=tau, formula=formula, impl=impl)


laws = pytest.mark.parametrize(("kind", "formula"), cases)


@st.composite
def problems(draw):
    n = draw(st.integers(2, 10))
    return draw(unit_rows(n, 3)) * 2, draw(label_vectors(n))


@laws
@given(problem=problems(), data=st.data())
def test_permutation(kind, formula, problem, data):
    z, ids = problem
    order = torch.tensor(data.draw(st.permutations(range(len(ids)))))
    value, gradient = value_and_gradient(lambda x: loss_of(kind, formula, x, ids), z)
    moved, moved_gradient = value_and_gradient(lambda x: loss_of(kind, formula, x, ids[order]), z[order])
    torch.testing.assert_close((moved, moved_gradient), (value, gradient[order]), rtol=1e-10, atol=1e-10)


@laws
@given(problem=problems(), seed=st.integers(0, 5))
def test_rotation(kind, formula, problem, seed):
    z, ids = problem
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    value, gradient = value_and_gradient(lambda x: loss_of(kind, formula, x, ids), z)
    turned = value_and_gradient(lambda x: loss_of(kind, formula, x, ids), z @ q)
    torch.testing.assert_close(turned, (value, gradient @ q), rtol=1e-9, atol=1e-9)
    moment = z.T @ gradient  # an infinitesimal rotation changes nothing: the moment is symmetric
    torch.testing.assert_close(moment, moment.T, rtol=1e-9, atol=1e-9)


@laws
@given(problem=problems(), scale=st.sampled_from([2.0**-30, 0.5, 4.0, 2.0**30]))
def test_length_of_an_embedding_does_not_matter(kind, formula, problem, scale):
    z, ids = problem
    value, gradient = value_and_gradient(lambda x: loss_of(kind, formula, x, ids), z)
    scaled, scaled_gradient = value_and_gradient(lambda x: loss_of(kind, formula, x, ids), z * scale)
    torch.testing.assert_close((scaled, scaled_gradient * scale), (value, gradient), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close((gradient * z).sum(1), torch.zeros(len(ids), dtype=z.dtype), atol=1e-9, rtol=0)


@laws
@given(problem=problems(), names=st.lists(st.integers(-(2**40), 2**40), min_size=3, max_size=3, unique=True))
def test_relabelling(kind, formula, problem, names):
    z, ids = problem
    assume(0 not in names)  # 0 is the background; its policy here is the same, its place in memory another
    renamed = torch.tensor(names)[ids]
    value = value_and_gradient(lambda x: loss_of(kind, formula, x, ids), z)
    torch.testing.assert_close(value_and_gradient(lambda x: loss_of(kind, formula, x, renamed), z), value)


@laws
@given(problem=problems())
def test_zero_padding_of_the_features(kind, formula, problem):
    z, ids = problem
    value, gradient = value_and_gradient(lambda x: loss_of(kind, formula, x, ids), z)
    padded = value_and_gradient(lambda x: loss_of(kind, formula, x, ids), F.pad(z, (0, 2)))
    torch.testing.assert_close(padded, (value, F.pad(gradient, (0, 2))), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("formula", LOCAL)
@given(problem=problems(), hold=st.sampled_from([0.0, math.nan, math.inf]))
def test_ignored_points_are_as_if_deleted(formula, problem, hold):
    z, ids = problem
    keep = ids != 1
    options = {"temperature": TAU, "formula": formula}
    poisoned = torch.where(keep[:, None], z, hold)
    value, gradient = value_and_gradient(
        lambda x: local_supcon(as_map(x), ids[None], ignore_index=1, **options), poisoned
    )
    if keep.any():
        short = value_and_gradient(lambda x: local_supcon(as_map(x), ids[keep][None], **options), z[keep])
        torch.testing.assert_close((value, gradient[keep]), short, rtol=1e-10, atol=1e-10)
    assert (gradient[~keep] == 0).all()
    assert value.isfinite()


@laws
@given(n=st.integers(1, 8), impl=st.sampled_from(IMPLEMENTATIONS), one_class=st.booleans())
def test_no_valid_anchor_is_a_zero_with_a_graph(kind, formula, n, impl, one_class):
    """All labels distinct: no positives. One class only: no negatives, which only some formulas need."""
    z = torch.randn(n, 3, requires_grad=True)
    ids = torch.zeros(n).long() if one_class else torch.arange(n)
    loss = loss_of(kind, formula, z, ids, impl)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()
    named = formulas.GLOBAL_FORMULAS if kind == "global" else formulas.LOCAL_FORMULAS
    needs = formulas.needs_negatives(named[formula])
    if not one_class or needs or n == 1:
        assert loss == 0
        assert (z.grad == 0).all()


@given(z=unit_rows(8, 3))
def test_swapping_the_augmentations(z):
    swapped = torch.cat([z[4:], z[:4]])
    torch.testing.assert_close(global_contrast(swapped, temperature=TAU), global_contrast(z, temperature=TAU))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("tau", [0.0122, 0.07, 1.0])
def test_collapse_and_floor_of_the_global_formulas(n, tau):
    """Known answers for 2n rows: all equal, and perfect (orthogonal) instances."""
    same = torch.ones(2 * n, 4, dtype=torch.float64)
    log = oracles.log
    assert math.isclose(global_contrast(same, temperature=tau).item(), log(2 * n - 1), abs_tol=1e-9)
    assert math.isclose(global_contrast(same, temperature=tau, formula="mmgl").item(), log(2 * n - 1), abs_tol=1e-9)
    if n > 1:
        value = global_contrast(same, temperature=tau, formula="decoupled").item()
        assert math.isclose(value, log(2 * n - 2), abs_tol=1e-9)
    perfect = torch.eye(n, 8, dtype=torch.float64).repeat(2, 1)
    floor = math.log1p((2 * n - 2) * math.exp(-1 / tau))
    assert math.isclose(global_contrast(perfect, temperature=tau).item(), floor, abs_tol=1e-9)


@pytest.mark.parametrize("size", [2, 10, 100])
def test_floor_of_supcon_is_log_of_the_positives(size):
    """Two opposite clusters: the loss is log(|P| + |N| e^(-2/tau)), the printed formula -(2/tau + log(|P|/|N|))/|P|."""
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64).repeat_interleave(size, 0)
    y = torch.arange(2).repeat_interleave(size)
    p, n = size - 1, size
    floor = math.log(p + n * math.exp(-2 / 0.07))
    for formula in ("supcon", "supcon_in"):
        got = local_supcon(as_map(z), y[None], formula=formula).item()
        assert math.isclose(got, floor, abs_tol=1e-9)
    printed = -(2 / 0.07 + math.log(p / n)) / p
    assert math.isclose(local_supcon(as_map(z), y[None], formula="mmgl").item(), printed, rel_tol=1e-9)


@given(problem=problems())
def test_bounds(problem):
    """Jensen: the mean inside the log is the smaller; and NT-Xent within its closed bounds."""
    z, ids = problem
    inside = loss_of("local", "supcon_in", z, ids)
    outside = loss_of("local", "supcon", z, ids)
    assert inside <= outside + 1e-9
    n = len(ids) // 2
    value = global_contrast(z[: 2 * n], temperature=TAU)
    low = math.log1p((2 * n - 2) * math.exp(-2 / TAU))
    assert low - 1e-9 <= value <= math.log(2 * n - 1) + 2 / TAU + 1e-9


@given(z=unit_rows(8, 3))
def test_decoupled_is_nt_xent_without_the_positive(z):
    """exp(nt_xent_i) = 1 + exp(decoupled_i), anchor by anchor."""
    seen = {}
    for name in ("nt_xent", "decoupled"):

        def record(terms, name=name):
            seen[name] = formulas.GLOBAL_FORMULAS[name](terms)
            return seen[name]

        global_contrast(z, temperature=TAU, formula=record)
    torch.testing.assert_close(seen["nt_xent"].exp(), 1 + seen["decoupled"].exp())


@given(problem=problems())
def test_one_image_does_not_see_another(problem):
    z, ids = problem
    other = torch.randn(1, 3, len(ids), dtype=z.dtype)
    x = torch.cat([as_map(z), other]).requires_grad_()
    y = torch.stack([ids, torch.arange(len(ids)) % 2])
    alone = [local_supcon(x[i : i + 1], y[i : i + 1], temperature=TAU) for i in range(2)]
    both = local_supcon(x, y, temperature=TAU)
    valid = [bool((y[i][:, None] == y[i]).sum() > len(ids)) for i in range(2)]
    wanted = torch.stack([a for a, v in zip(alone, valid, strict=True) if v]).mean() if any(valid) else both * 0
    torch.testing.assert_close(both, wanted)


@given(h=st.integers(4, 9), w=st.integers(4, 9), k=st.integers(0, 3))
def test_turning_the_image_changes_nothing(h, w, k):
    features, labels = torch.randn(1, 3, h, w, dtype=torch.float64), torch.randint(3, (1, h, w))
    turned = local_supcon(features.rot90(k, (2, 3)), labels.rot90(k, (1, 2)), temperature=TAU)
    torch.testing.assert_close(turned, local_supcon(features, labels, temperature=TAU))


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
        terms, _ = local_terms(features, labels, stride=4, sampling=sampling, background="key", temperature=TAU)
        anchors[sampling] = (terms.n_positives > 0).sum().item()
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


@pytest.mark.parametrize("loss", ["global", "local"])
def test_autocast_changes_nothing(loss):
    x, y = torch.randn(2, 8, 10, 10), torch.randint(3, (2, 10, 10))
    run = (lambda: local_supcon(x, y)) if loss == "local" else (lambda: global_contrast(x.flatten(1)))
    expected = run()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(run(), expected, rtol=0, atol=0)


def test_inputs_are_left_alone_and_strides_do_not_matter():
    x = torch.randn(2, 8, 6, 6)
    y = torch.randint(3, (1, 6, 6)).expand(2, 6, 6)
    before = x.clone(), y.clone()
    value = local_supcon(x, y)
    torch.testing.assert_close(local_supcon(x.to(memory_format=torch.channels_last), y.int()), value)
    torch.testing.assert_close(local_supcon(x, y.to(torch.uint8)), value)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


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
