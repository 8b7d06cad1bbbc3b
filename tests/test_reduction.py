"""`reduction="none"`: the losses of which the loss is the mean, of each anchor or (with `test_dice`) of each class."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon
from mmgl_losses.functional import global_contrast, local_supcon, soft_dice
from mmgl_losses.losses.formulas import without_negatives
from mmgl_losses.sampling import foreground_places, resample
from tests import oracles
from tests.problems import CONTRAST, problems
from tests.strategies import matrices

over = pytest.mark.parametrize("row", CONTRAST, ids=lambda row: "-".join(row))
few = settings(max_examples=16)
NAMES = {("global", "mmgl"): "mmgl_global", ("local", "mmgl"): "mmgl_local"}
MAKES = {"global": MultiScaleGlobalContrast, "local": MultiScaleLocalSupCon}


def together(problem):
    """Rows of the batch that are compared with one another, one list for each group."""
    size = len(problem.x)
    scope = problem.options.get("pairs", "batch")
    if scope == "augmentations":
        return [[i, i + size // 2] for i in range(size // 2)]
    return [[i] for i in range(size)] if scope == "image" else [list(range(size))]


def mean_of(problem, losses):
    """What the loss is of these: over the anchors of a group, then over the groups that have any; 0 of nothing."""
    means = torch.stack([losses[rows].nanmean() for rows in together(problem)]) if len(losses) else losses
    return means.nanmean().nan_to_num()


@over
@few
@given(data=st.data())
def test_the_loss_is_their_mean(row, data):
    problem = data.draw(problems(row))
    x = problem.x.detach().clone().requires_grad_()
    losses = problem.but(x, reduction="none").loss()
    assert losses.shape == problem.ids.shape
    assert losses.dtype == x.dtype
    value = mean_of(problem, losses)
    gradient = torch.autograd.grad(value, x, allow_unused=True)[0] if losses.isfinite().any() else torch.zeros_like(x)
    torch.testing.assert_close((value.detach(), gradient), problem.result(), **problem.tolerance)


@over
@few
@given(data=st.data())
def test_each_is_that_of_a_plain_loop(row, data):
    """The definition, for one anchor at a time; NaN where there is none."""
    problem = data.draw(problems(row, exact=True))
    options, got = problem.options, problem.but(reduction="none").loss()
    points = F.normalize(problem.points[0] if row[0] == "global" else problem.points, dim=-1)
    ids, got = problem.ids.reshape(len(points), -1), got.reshape(len(points), -1)
    for rows in together(problem):
        z, y = points[rows].reshape(-1, points.shape[-1]), ids[rows].flatten().tolist()
        part = [i for i, label in enumerate(y) if row[0] == "global" or label != options["ignore_index"]]
        inside = part if options.get("background", "anchor") == "anchor" else [i for i in part if y[i] != 0]
        keys = inside if options.get("background") == "ignore" else part
        for i, mine in enumerate(got[rows].flatten()):
            wanted = oracles.contrastive_loss(
                NAMES.get(row, row[1]), z, y, temperature=options["temperature"], anchors=[i] if i in inside else [],
                keys=keys,
            )  # fmt: skip
            torch.testing.assert_close(mine, z.new_tensor(math.nan) if wanted is None else wanted, equal_nan=True)


@pytest.mark.parametrize("order", [[7, 5, 7, 5], [2, 2, 9, 9], [3, 1, 1, 3]])
def test_augmentations_stay_in_the_order_of_the_batch(order):
    x, y = torch.randn(4, 3, 2, 5), torch.randint(3, (4, 2, 5))
    got = local_supcon(x, y, order, pairs="augmentations", reduction="none")
    for image in set(order):
        rows = [i for i, own in enumerate(order) if own == image]
        alone = local_supcon(x[rows], y[rows], pairs="batch", reduction="none")
        torch.testing.assert_close(got[rows], alone, equal_nan=True)


@pytest.mark.parametrize("shape", [(12,), (9, 10), (5, 6, 7)])
@pytest.mark.parametrize("sampling", ["grid", "foreground"])
def test_a_point_stands_where_its_label_is(shape, sampling):
    """A formula that returns the number of positives says of which label a point is."""
    labels = torch.randint(4, (2, *(3 * n for n in shape)))
    features = torch.randn(2, 3, *shape)

    @without_negatives
    def counts(terms):
        return terms.n_positives.to(terms.self_logit.dtype)

    got = local_supcon(
        features, labels, stride=2, sampling=sampling, formula=counts, reduction="none", background="key"
    )
    assert got.shape[1:] == tuple(math.ceil(n / 2) for n in shape)
    here = resample(labels, got.shape[1:])
    if sampling == "foreground":
        here = labels.flatten(1).gather(1, foreground_places(labels, got.shape[1:], excluded=(0,))).view(got.shape)
    same = (here.flatten(1)[:, :, None] == here.flatten(1)[:, None]).sum(2).view(got.shape) - 1
    counted = (here != 0) & (same > 0)
    assert torch.equal(got.isnan(), ~counted)
    assert torch.equal(got[counted].long(), same[counted])


@few
@given(z=matrices(12, 3), weights=st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=3, max_size=3).filter(any))
def test_weights_of_classes(z, weights):
    """By labels at the points, against a loop; anchors without positives have no share."""
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 0, 1]).view(1, 3, 4)
    of_class = torch.tensor([*weights, 5.0], dtype=z.dtype)
    losses = local_supcon(z.T.view(1, 3, 3, 4), labels, temperature=0.5, reduction="none")
    counts = ~losses.isnan()
    assert torch.equal(counts, labels != 3)
    w = of_class[labels][counts]
    got = (w * losses[counts]).sum() / w.sum()
    unit, y = F.normalize(z, dim=1), labels.flatten().tolist()
    wanted = sum(
        of_class[y[i]] * oracles.contrastive_loss("supcon", unit, y, temperature=0.5, anchors=[i])
        for i in range(12)
        if y[i] != 3
    )
    torch.testing.assert_close(got, wanted / w.sum())


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("named", [False, True])
def test_levels_have_their_weights_and_keys(kind, named):
    """What is reduced is what the module sums up: nothing but the means is left to do."""
    rest = () if kind == "global" else (torch.randint(3, (4, 8, 8)),)
    shapes = [(4, 5), (4, 5), (4, 3)] if kind == "global" else [(4, 5, n, n) for n in (2, 4, 8)]
    levels, weights = [torch.randn(shape) for shape in shapes], [0.5, 0.0, 2.0]
    levels[1] = torch.full_like(levels[1], math.nan)
    if named:
        levels, weights = dict(zip("abc", levels, strict=True)), dict(zip("abc", weights, strict=True))
    losses = MAKES[kind](weights=weights, reduction="none")(levels, *rest)
    assert list(losses) == (["a", "c"] if named else [0, 2])
    function = global_contrast if kind == "global" else local_supcon
    for key, got in losses.items():
        torch.testing.assert_close(got, weights[key] * function(levels[key], *rest, reduction="none"), equal_nan=True)
    total = sum(got.flatten(0 if kind == "global" else 1).nanmean(-1).nanmean() for got in losses.values())
    torch.testing.assert_close(total, MAKES[kind](weights=weights)(levels, *rest))


@pytest.mark.parametrize("batch", [True, False])
def test_levels_of_dice_have_their_weights_and_keys(batch):
    logits, labels = [torch.randn(2, 3, n, n) for n in (2, 4, 8)], torch.randint(3, (2, 8, 8))
    logits[1] = torch.full_like(logits[1], math.nan)
    losses = DeepSupervisionDice(weights=(0.5, 0.0, 2.0), batch=batch, reduction="none")(logits, labels)
    assert {key: x.shape for key, x in losses.items()} == dict.fromkeys((0, 2), (3,) if batch else (2, 3))
    torch.testing.assert_close(losses[2], 2 * soft_dice(logits[2], labels, batch=batch, reduction="none"))
    total = DeepSupervisionDice(weights=(0.5, 0.0, 2.0), batch=batch)(logits, labels)
    torch.testing.assert_close(sum(x.mean() for x in losses.values()), total)


def test_levels_by_name_have_weights_by_order():
    levels = {name: torch.randn(4, 3) for name in ("deep", "deeper")}
    assert list(MultiScaleGlobalContrast(weights=(1, 2), reduction="none")(levels)) == ["deep", "deeper"]


@pytest.mark.parametrize("hold", [math.nan, math.inf])
def test_features_that_are_not_finite_are_not_taken_for_points_that_do_not_count(hold):
    """Else the mean without NaN would leave out what has gone wrong, and a step would be made with it."""
    x, y = torch.randn(2, 3, 12), torch.tensor([[0, 0, 0, 1, 1, 2] * 2, [4, 1, 2, 3, 4, 4] * 2])
    y[:, 0] = 9  # the only one of its kind
    x[0, :, 3] = hold
    x.requires_grad_()
    losses = local_supcon(x, y, reduction="none")
    assert losses[1, 1:].isfinite().all()
    assert torch.equal(losses.isnan(), y == 9)
    assert (losses[0, 1:] == math.inf).any()
    losses.flatten(1).nanmean(1).nanmean().backward()
    assert not x.grad.isfinite().all()


def test_nothing_counts():
    """A batch of nothing, and one in which every point is ignored: no loss, no gradient, no error."""
    for batch in (0, 2):
        x = torch.randn(batch, 3, 4, 4, requires_grad=True)
        for pairs in ("image", "augmentations", "batch"):
            losses = local_supcon(x, torch.full((batch, 4, 4), 3), ignore_index=3, pairs=pairs, reduction="none")
            assert losses.shape == (batch, 4, 4)
            assert losses.isnan().all()
            assert (torch.autograd.grad(losses.nansum(), x)[0] == 0).all()


def test_pixels_without_a_loss_are_silent():
    """No warning of what is no fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        local_supcon(torch.randn(1, 3, 2, 2), torch.tensor([[[0, 0], [1, 2]]]), reduction="none").nansum()


def test_compiles_whole():
    x, y = torch.randn(2, 8, 6, 6), torch.randint(3, (2, 24, 24))
    y[0, :4, :4] = 7  # the only point of its kind

    def losses(x):
        of_points = [local_supcon(x, y, pairs=pairs, reduction="none") for pairs in ("image", "augmentations")]
        return *of_points, global_contrast(x.flatten(1), reduction="none")

    found = []
    for run in (losses, torch.compile(losses, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        values = run(leaf)
        found.append((*(v.detach() for v in values), *torch.autograd.grad(sum(v.nansum() for v in values), leaf)))
    torch.testing.assert_close(found[1], found[0], equal_nan=True)


@pytest.mark.parametrize("make", [MultiScaleGlobalContrast, MultiScaleLocalSupCon, DeepSupervisionDice])
def test_is_shown_and_does_not_reach_what_is_diagnosed(make):
    rest = () if make is MultiScaleGlobalContrast else (torch.randint(3, (4, 6, 6)),)
    levels = [torch.randn(4, 5, 6, 6) if rest else torch.randn(4, 5)]
    loss = make(weights=(1.0,), reduction="none")
    assert "reduction='none'" in repr(loss)
    assert loss.diagnose(levels, *rest) == make(weights=(1.0,)).diagnose(levels, *rest)
