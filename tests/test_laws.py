"""The laws of the losses, each over the whole table of `problems`, and what is known in closed form."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon
from mmgl_losses.contrast import PairTerms, pair_terms
from mmgl_losses.functional import global_contrast, local_supcon
from mmgl_losses.losses import formulas
from tests import problems as table
from tests.problems import CONTRAST, GLOBAL, IGNORED, IMPLEMENTATIONS, LOCAL, ROWS, problems
from tests.strategies import contrasts, matrices

over = lambda rows: pytest.mark.parametrize("row", rows, ids=lambda row: "-".join(row))  # noqa: E731
every, contrast, local = over(ROWS), over(CONTRAST), over(LOCAL)
few = settings(max_examples=16)
NAMED = {"global": formulas.GLOBAL_FORMULAS, "local": formulas.LOCAL_FORMULAS}


def close(got, wanted, problem, **tolerance):
    torch.testing.assert_close(got, wanted, **(tolerance or problem.tolerance))


# What may change without changing the loss -----------------------------------------------------------------------


@every
@few
@given(data=st.data())
def test_order_of_points(row, data):
    """C1, L4, D3: points in another order, the same in all images: the value stays, the gradient moves with them."""
    problem = data.draw(problems(row))
    n = problem.points.shape[1]
    order = torch.tensor(data.draw(st.permutations(range(n))))
    ids = problem.ids[order] if row[0] == "global" else problem.ids.flatten(1)[:, order].view_as(problem.ids)
    moved = problem.with_points(problem.points[:, order]).but(ids=ids)
    value, gradient = problem.result()
    moved_value, moved_gradient = moved.result()
    close((moved_value, table.rows(moved_gradient)), (value, table.rows(gradient)[:, order]), problem)


@every
@few
@given(data=st.data())
def test_order_of_images(row, data):
    """C1, D3: images in another order, with their labels; augmentations of one image change places."""
    problem = data.draw(problems(row))
    value, gradient = problem.result()
    close(problem.but(problem.x.flip(0), problem.ids.flip(0)).result(), (value, gradient.flip(0)), problem)


@local
@few
@given(data=st.data())
def test_turning_and_shaping_the_image(row, data):
    """L4: nothing depends on where a point is, once labels and features hold the same places."""
    problem = data.draw(problems(row))
    value = problem.loss()
    flat = problem.but(problem.x.flatten(2), problem.ids.flatten(1))
    close(flat.loss(), value, problem)
    if problem.x.ndim == 4:
        turned = problem.but(problem.x.rot90(1, (2, 3)), problem.ids.rot90(1, (1, 2)))
        close(turned.loss(), value, problem)


@contrast
@few
@given(data=st.data(), seed=st.integers(0, 5))
def test_rotation(row, data, seed):
    """C2: all vectors turned: the gradient turns too. C3: so the moment z^T g of the gradient alone is symmetric."""
    problem = data.draw(problems(row))
    q = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    q = q.to(problem.x.dtype)
    value, gradient = problem.result()
    turned_value, turned_gradient = problem.with_points(problem.points @ q).result()
    close((turned_value, table.rows(turned_gradient)), (value, table.rows(gradient) @ q), problem)
    moment = problem.points.flatten(0, 1).T @ table.rows(gradient).flatten(0, 1)
    close(moment, moment.T, problem)


@contrast
@few
@given(data=st.data())
def test_zeros_behind_the_features(row, data):
    """C4: more coordinates that are all zero; their gradient is zero as well."""
    problem = data.draw(problems(row))
    value, gradient = problem.result()
    wide_value, wide_gradient = problem.with_points(F.pad(problem.points, (0, 2))).result()
    close((wide_value, table.rows(wide_gradient)), (value, F.pad(table.rows(gradient), (0, 2))), problem)


@pytest.mark.filterwarnings("ignore:`labels` hold")  # of negative ones
@contrast
@few
@given(data=st.data(), names=st.lists(st.integers(-(2**40), 2**40), min_size=4, max_size=4, unique=True))
def test_names_of_classes(row, data, names):
    """C5: any injection of the labels, background and ignored ones included: negative, huge, in any order."""
    problem = data.draw(problems(row))
    options = {}
    if row[0] == "local":
        if problem.options["background"] != "anchor":
            options["background_index"] = names[0]
        if problem.options["ignore_index"] is not None:
            options["ignore_index"] = names[IGNORED]
    close(problem.but(ids=torch.tensor(names)[problem.ids], **options).result(), problem.result(), problem)


@contrast
@few
@given(data=st.data(), exponents=st.lists(st.integers(-40, 40), min_size=16, max_size=16))
def test_length_of_a_vector(row, data, exponents):
    """C6: each vector may have any length; the gradient is orthogonal to it and inverse to its length."""
    problem = data.draw(problems(row))
    batch, n, _ = problem.points.shape
    scale = torch.tensor([2.0**e for e in exponents[: batch * n]], dtype=problem.x.dtype).view(batch, n, 1)
    value, gradient = problem.result()
    scaled_value, scaled_gradient = problem.with_points(problem.points * scale).result()
    close((scaled_value, table.rows(scaled_gradient) * scale), (value, table.rows(gradient)), problem)
    along = (table.rows(gradient) * problem.points).sum(-1)
    close(along, torch.zeros_like(along), problem)


@given(problem=contrasts(), exponent=st.integers(-6, 6))
def test_length_and_temperature_of_the_primitive(problem, exponent):
    """C7: c z at temperature c^2 t is z at t. The gradient is homogeneous of degree -1."""
    anchors, ids, options = problem
    c = 2.0**exponent
    warm = {**options, "temperature": options["temperature"] * c * c}
    if "keys" in options:
        warm["keys"] = options["keys"] * c
    for a, b in zip(pair_terms(anchors, ids, **options), pair_terms(anchors * c, ids, **warm), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)


@given(problem=contrasts(), shift=st.sampled_from([-700.0, 3.0, 700.0]), impl=st.sampled_from(IMPLEMENTATIONS))
def test_shift_of_all_logits_of_the_primitive(problem, shift, impl):
    """C8: one constant on every key's logarithm of a weight comes out again; e^700 is near the end of float64."""
    anchors, ids, options = problem
    weights = options.pop("key_log_weights", torch.zeros(len(options.get("keys", anchors)), dtype=anchors.dtype))
    before = pair_terms(anchors, ids, **options, key_log_weights=weights, impl=impl, bound=12.0)
    after = pair_terms(anchors, ids, **options, key_log_weights=weights + shift, impl=impl, bound=12.0)
    for a, b in zip(before[:2], after[:2], strict=True):
        torch.testing.assert_close(b, a + shift, rtol=1e-10, atol=1e-9)


@over([row for row in ROWS if row[0] != "global"])
@few
@given(data=st.data(), hold=st.sampled_from([0.0, math.nan, math.inf, -math.inf]))
def test_ignored_points(row, data, hold):
    """C9, D8: points that are ignored might as well be cut out, whatever they hold; their gradient is exactly 0."""
    problem = data.draw(problems(row, options={"ignore_index": IGNORED}))
    problem = problem.but(
        problem.x[:1].flatten(2), problem.ids[:1].flatten(1), **({"pairs": "image"} if row[0] == "local" else {})
    )
    keep = problem.ids[0] != IGNORED
    poisoned = problem.but(torch.where(keep, problem.x, hold))
    value, gradient = poisoned.result()
    assert value.isfinite()
    assert (gradient[..., ~keep] == 0).all()
    if keep.any():
        cut = problem.but(problem.x[..., keep], problem.ids[..., keep], ignore_index=None)
        close((value, gradient[..., keep]), cut.result(), problem)


@local
@few
@given(data=st.data())
def test_background_that_is_ignored(row, data):
    """`background="ignore"` is `ignore_index` at the background; "key" differs from "anchor" by who counts, not by keys."""
    problem = data.draw(problems(row, options={"ignore_index": None}))
    ignored = problem.but(background="ignore").result()
    close(problem.but(background="anchor", ignore_index=0).result(), ignored, problem)
    problem, seen = problem.but(pairs="image"), {}
    for policy in ("anchor", "key"):

        def record(terms, policy=policy):
            seen[policy] = NAMED["local"][row[1]](terms).flatten()
            return seen[policy].view_as(terms.self_logit)

        problem.but(background=policy, formula=record).loss()
    foreground = problem.ids.flatten() != 0
    close(seen["key"][foreground], seen["anchor"][foreground], problem)


@every
@few
@given(data=st.data())
def test_memory_layout_and_type_of_labels(row, data):
    """C16: strides, offsets and label types do not matter, and no input is written to."""
    problem = data.draw(problems(row))
    value = problem.result()
    before = problem.x.clone(), problem.ids.clone()
    strided = torch.stack([problem.x, problem.x + 1], -1)[..., 0]
    offset = torch.cat([problem.ids[:1], problem.ids])[1:]
    close(problem.but(strided, offset).result(), value, problem)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16):
        if row[0] != "global" or dtype.is_signed:
            close(problem.but(ids=problem.ids.to(dtype)).loss(), value[0], problem)
    assert torch.equal(problem.x, before[0])
    assert torch.equal(problem.ids, before[1])


@pytest.mark.filterwarnings("ignore:`labels` hold")
@over([row for row in ROWS if row[0] != "global"])
@few
@given(data=st.data(), outside=st.sampled_from([-1, -100, 255, 256, 300]))
def test_an_index_that_the_type_of_the_labels_cannot_hold(row, data, outside):
    """An index beyond the type does not wrap around: -1 is not 255 of uint8, 256 is not 0."""
    problem = data.draw(problems(row, options={"ignore_index": None}))
    for dtype in (torch.uint8, torch.int8):
        if not torch.iinfo(dtype).min <= outside <= torch.iinfo(dtype).max:
            wrapped = torch.tensor(outside).to(dtype).long().item()
            labels = problem.ids if row[0] == "dice" else torch.where(problem.ids == 1, wrapped, problem.ids)
            narrow = problem.but(ids=labels.to(dtype), ignore_index=outside)
            close(narrow.result(), problem.but(ids=labels).result(), problem)


@every
@few
@given(data=st.data(), dtype=st.sampled_from([torch.float16, torch.bfloat16]))
def test_half_precision_is_widened_first(row, data, dtype):
    """C17: half-precision inputs give, bit for bit, what float32 gives for the same numbers; autocast changes nothing."""
    problem = data.draw(problems(row))
    half = problem.but(problem.x.to(dtype))
    value, gradient = half.result()
    assert value.dtype == torch.float32
    wanted, wanted_gradient = half.but(half.x.float()).result()
    assert torch.equal(value, wanted)
    assert torch.equal(gradient, wanted_gradient.to(dtype))
    with torch.autocast("cpu", dtype):
        assert torch.equal(half.loss(), value)


@over(GLOBAL)
@few
@given(data=st.data(), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_two_halves_are_their_instances(row, data, dtype):
    """C19: the default instances have a way of their own, which must obey every law that the general way obeys."""
    problem = data.draw(problems(row, exact=True))
    n = len(problem.x) // 2 * 2
    if n:
        problem = problem.but(problem.x[:n].to(dtype), torch.arange(n // 2).repeat(2))
        wanted = problem.but(impl="reference").result()
        got = replace(problem.but(impl="auto"), ids=None).result()
        tolerance = problem.tolerance if dtype != torch.bfloat16 else {"rtol": 2e-2, "atol": 1e-2}
        close(got, wanted, problem, **tolerance)


@contrast
@few
@given(data=st.data())
def test_implementations_agree(row, data):
    """C19: dense and tiled; and so does the choice by size."""
    problem = data.draw(problems(row))
    wanted = problem.but(impl="reference").result()
    for impl in (*IMPLEMENTATIONS, "auto"):
        close(problem.but(impl=impl).result(), wanted, problem)


@over([row for row in ROWS if row[0] != "global"])
@few
@given(data=st.data(), repeats=st.integers(2, 3))
def test_labels_are_taken_at_the_place_of_a_point(row, data, repeats):
    """D10: labels of a finer grid, constant over the cells, are the labels; L5 is in `test_heads`."""
    problem = data.draw(problems(row))
    fine = problem.ids
    for axis in range(1, fine.ndim):
        fine = fine.repeat_interleave(repeats, axis)
    close(problem.but(ids=fine).result(), problem.result(), problem, rtol=0, atol=0)


@contrast
@settings(max_examples=8)
@given(data=st.data(), size=st.sampled_from([1e-25, 1e25]), temperature=st.sampled_from([0.0135, 0.07]))
def test_gradients_of_any_size(row, data, size, temperature):
    """A loss times a constant has a gradient times that constant, in float32, at temperatures whose exp nearly overflows."""
    problem = data.draw(problems(row, exact=True)).but(temperature=temperature)
    x = problem.points.flatten(0, 1)
    x = torch.where((x == 0).all(1, keepdim=True), 1.0, x) + 8.0  # near one another: the largest logits
    problem = problem.with_points(x.view_as(problem.points))
    problem = problem.but(problem.x.float())
    if row[0] == "global" and len(problem.x) % 2 == 0:
        problem = problem.but(impl=data.draw(st.sampled_from(["auto", *IMPLEMENTATIONS])))
        problem = replace(problem, ids=None) if problem.options["impl"] == "auto" else problem
    leaf = problem.x.clone().requires_grad_()
    plain = torch.autograd.grad(problem.but(leaf).loss(), leaf)[0]
    scaled = torch.autograd.grad(size * problem.but(leaf).loss(), leaf)[0] / size
    force = 1 / temperature / problem.x.norm(dim=1).min()
    torch.testing.assert_close(scaled, plain, rtol=1e-4, atol=1e-6 * float(force))


# Empty, and independent -------------------------------------------------------------------------------------------


@every
@few
@given(data=st.data(), kind=st.sampled_from(["distinct", "one class", "ignored", "empty batch"]))
def test_nothing_to_learn_from(row, data, kind):
    """C11, D9: no valid anchor is a zero with a graph and a zero gradient; one class alone is finite; never NaN."""
    problem = data.draw(problems(row))
    ids = torch.arange(problem.ids.numel()).view_as(problem.ids) + 10
    if kind == "one class":
        ids = torch.ones_like(problem.ids)
    elif kind == "ignored" and row[0] != "global":
        ids, problem = torch.full_like(problem.ids, IGNORED), problem.but(ignore_index=IGNORED)
    elif row[0] == "dice":
        ids = problem.ids.clamp(max=1)  # class 2 is absent
        problem = problem.but(ignore_index=None)
    if kind == "empty batch":
        problem, ids = problem.but(problem.x[:0]), ids[:0]
    value, gradient = problem.but(ids=ids).result()
    assert value.isfinite()
    assert gradient.isfinite().all()
    needs = row[0] != "dice" and formulas.needs_negatives(NAMED[row[0]][row[1]])
    nothing = kind in ("ignored", "empty batch") or (row[0] != "dice" and (kind == "distinct" or needs))
    if nothing and not (kind == "ignored" and row[0] == "global"):
        assert value == 0
        assert (gradient == 0).all()


@local
@few
@given(data=st.data())
def test_images_are_independent(row, data):
    """L3: with pairs="image", the mean over the images that have a valid anchor; no image reaches another's gradient."""
    problem = data.draw(problems(row, options={"pairs": "image"}))
    value, gradient = problem.result()
    needs = formulas.needs_negatives(NAMED["local"][row[1]])
    counts = [any(n > 0 or not needs for _, n in group) for group in problem.groups()]
    alone = [problem.but(problem.x[i : i + 1], problem.ids[i : i + 1]).result() for i in range(len(problem.x))]
    total = max(sum(counts), 1)
    wanted = sum(v for (v, _), count in zip(alone, counts, strict=True) if count) / total
    close(value, torch.as_tensor(wanted, dtype=value.dtype), problem)
    close(gradient, torch.cat([g for _, g in alone]) / total, problem)


@contrast
@few
@given(data=st.data())
def test_the_mean_is_over_valid_anchors(row, data):
    """C10: mean over the valid anchors of each group, then over the groups that have any, from a formula that tells."""
    problem = data.draw(problems(row))
    seen = []

    def record(terms):
        seen.append(NAMED[row[0]][row[1]](terms))
        return seen[-1]

    record.needs_negatives = formulas.needs_negatives(NAMED[row[0]][row[1]])
    valid = []

    def count(terms):
        valid.append((terms.n_positives > 0) & ((terms.n_negatives > 0) | (not record.needs_negatives)))
        return terms.self_logit * 0 + 1.0

    count.needs_negatives = record.needs_negatives
    value = problem.but(formula=record).loss()
    ones = problem.but(formula=count).loss()
    groups = [group for group in problem.groups() if any(n > 0 or not record.needs_negatives for _, n in group)]
    close(ones, torch.as_tensor(1.0 if groups else 0.0, dtype=ones.dtype), problem)
    exact = problem.x.dtype == torch.float64  # an engine that has the formula evaluates it in float64
    close(value, problem.loss(), problem, rtol=0, atol=1e-13 if exact else 2e-6)


# Known answers ----------------------------------------------------------------------------------------------------


def closed_form(row, p, n, positive, negative, temperature):
    """The loss of an anchor with p positives of one cosine and n negatives of another."""
    s, t = positive / temperature, negative / temperature
    kind, name = row
    if name in ("nt_xent", "supcon", "supcon_in"):
        return math.log(p + n * math.exp(t - s))
    if name == "decoupled":
        return math.log(n) + t - s
    if kind == "global":
        return math.log(math.exp(1 / temperature - s) + n * math.exp(t - s))
    return (math.log(n / p) + t - s) / p


ARRANGED = {"collapse": (1.0, [[1, 0, 0, 0]] * 4), "apart": (0.0, torch.eye(4).tolist()), "opposite": (-1.0, [[1, 0, 0, 0], [-1, 0, 0, 0]] * 2)}  # fmt: skip


@contrast
@pytest.mark.parametrize("arranged", ARRANGED)
@few
@given(data=st.data(), temperature=st.sampled_from([0.02, 0.07, 1.0, 50.0]))
def test_known_answers(row, arranged, data, temperature):
    """G2, L1: collapse, and perfect clusters that are orthogonal or opposite, for any labels, scope and policy."""
    problem = data.draw(problems(row, exact=True))
    cosine, vectors = ARRANGED[arranged]
    if arranged == "opposite":
        problem = problem.but(ids=torch.where(problem.ids > 1, problem.ids.clamp(min=3), problem.ids))
        problem = problem.but(ids=problem.ids % 2)
    x = torch.tensor(vectors, dtype=torch.float64)[problem.ids.flatten()].view(*problem.points.shape[:2], 4)
    problem = problem.with_points(x).but(temperature=temperature)
    needs = formulas.needs_negatives(NAMED[row[0]][row[1]])
    means = []
    for group in problem.groups():
        losses = [closed_form(row, p, n, 1.0, cosine, temperature) for p, n in group if n > 0 or not needs]
        means += [sum(losses) / len(losses)] if losses else []
    wanted = sum(means) / len(means) if means else 0.0
    assert math.isclose(problem.loss().item(), wanted, rel_tol=1e-9, abs_tol=1e-9)


@contrast
@few
@given(data=st.data())
def test_temperature_limits(row, data):
    """C15: hot, all logits are equal, as in a collapse; cold, the loss times the temperature is a hinge."""
    problem = data.draw(problems(row, exact=True))
    lit = torch.where((problem.points == 0).all(-1, keepdim=True), 1.0, problem.points)  # zero vectors have no cosine
    problem = problem.with_points(lit)
    same = problem.with_points(torch.ones_like(lit))
    close(problem.but(temperature=1e9).loss(), same.loss() * 1.0, problem, rtol=1e-6, atol=1e-6)
    cold = 1e-4
    close(
        problem.but(temperature=cold).loss() * cold,
        problem.but(temperature=cold / 4).loss() * cold / 4,
        problem,
        rtol=0,
        atol=4e-3,
    )


@given(z=matrices(8, 3))
def test_one_positive_is_nt_xent(z):
    """G4: SupCon with one positive is NT-Xent, inside or outside the log; G1: augmentations may change places."""
    ids = torch.arange(4).repeat(2)
    wanted = global_contrast(z, temperature=0.5)
    for formula in ("supcon", "supcon_in"):
        torch.testing.assert_close(local_supcon(z.T[None], ids[None], temperature=0.5, formula=formula), wanted)
    torch.testing.assert_close(global_contrast(torch.cat([z[4:], z[:4]]), temperature=0.5), wanted)
    if (z != 0).any(1).all():
        unit = F.normalize(z, dim=1)
        logits = (unit @ unit.T / 0.5).fill_diagonal_(-torch.inf)
        torch.testing.assert_close(
            F.cross_entropy(logits, torch.arange(4).repeat(2) + torch.tensor([4] * 4 + [0] * 4)), wanted
        )


@given(z=matrices(2, 3), row=st.sampled_from(["nt_xent", "mmgl"]))
def test_two_rows_are_alone(z, row):
    """G6: one image, two augmentations, nothing to tell it from: NT-Xent is 0."""
    value = global_contrast(z, temperature=0.5, formula=row)
    if row == "nt_xent":
        torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)


# Inequalities and gradients of the formulas -----------------------------------------------------------------------


@few
@given(data=st.data())
def test_bounds(data):
    """G3: NT-Xent between its closed bounds. L1: log|P| <= supcon_in <= supcon (Jensen), over the anchors' mean."""
    problem = data.draw(problems(("local", "supcon"), exact=True))
    inside, outside = problem.but(formula="supcon_in").loss(), problem.loss()
    floors = [sum(math.log(p) for p, _ in group) / len(group) for group in problem.groups() if group]
    floor = sum(floors) / len(floors) if floors else 0.0
    assert floor - 1e-9 <= inside <= outside + 1e-9
    z, n, tau = data.draw(matrices(8, 3)), 4, 0.5
    value = global_contrast(z, temperature=tau)
    assert math.log1p((2 * n - 2) * math.exp(-2 / tau)) - 1e-9 <= value <= math.log(2 * n - 1) + 2 / tau + 1e-9


@given(z=matrices(8, 3))
def test_decoupled_is_nt_xent_without_the_positive(z):
    """G5: exp(nt_xent_i) = 1 + exp(decoupled_i), anchor by anchor."""
    seen = {}
    for name in ("nt_xent", "decoupled"):

        def record(terms, name=name):
            seen[name] = formulas.GLOBAL_FORMULAS[name](terms)
            return seen[name]

        global_contrast(z, temperature=0.5, formula=record)
    torch.testing.assert_close(seen["nt_xent"].exp(), 1 + seen["decoupled"].exp())


@contrast
@given(
    logits=matrices(6, 6),
    labels=st.lists(st.integers(0, 2), min_size=6, max_size=6),
    shift=st.sampled_from([-1e3, 7.0, 1e3]),
)
def test_gradients_of_the_logits(row, logits, labels, shift):
    """C8, C14: a constant on the logits of a row changes nothing, so their gradients sum to 0. C13: they have signs.

    (Of supcon with several positives, the one that is better than the mean is pushed away: no sign.)
    """
    y = torch.tensor(labels)
    same = y[:, None] == y
    positive, negative = same & ~torch.eye(6, dtype=torch.bool), ~same
    counted = positive.any(1) & negative.any(1)

    def losses(s):
        pick = lambda mask: s.masked_fill(~mask, -torch.inf).masked_fill(~mask.any(1, keepdim=True), 0.0).logsumexp(1)  # noqa: E731
        terms = (
            pick(positive),
            pick(negative),
            (s * positive).sum(1),
            s.diagonal(),
            positive.sum(1).clamp(min=1),
            negative.sum(1).clamp(min=1),
        )
        return NAMED[row[0]][row[1]](PairTerms(*terms))[counted]

    s = (4 * logits).requires_grad_()
    torch.testing.assert_close(losses(s + shift), losses(s), rtol=1e-9, atol=1e-9)
    gradient = torch.autograd.grad(losses(s).sum(), s)[0]
    torch.testing.assert_close(gradient.sum(1), torch.zeros(6, dtype=s.dtype), rtol=0, atol=1e-9)
    assert (gradient[negative] >= -1e-12).all()
    signed = positive & (
        torch.ones_like(positive) if row[1] not in ("nt_xent", "supcon") else (positive.sum(1) == 1)[:, None]
    )
    assert (gradient[signed] <= 1e-12).all()


# Several levels ---------------------------------------------------------------------------------------------------


@every
@few
@given(data=st.data(), weights=st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=3, max_size=3).filter(any))
def test_levels_are_weighted(row, data, weights):
    """M1, D10: linear in the weights; one weight alone is that level; a level of weight 0 may hold NaN."""
    problem = data.draw(problems(row, exact=True))
    make = {"global": MultiScaleGlobalContrast, "local": MultiScaleLocalSupCon, "dice": DeepSupervisionDice}[row[0]]
    levels = {name: problem.x * factor for name, factor in zip("abc", (1.0, -1.0, 0.5), strict=True)}
    each = {name: problem.but(x).loss() for name, x in levels.items()}
    named = dict(zip("abc", weights, strict=True))
    wanted = sum(named[name] * each[name] for name in named)
    levels |= {name: torch.full_like(problem.x, math.nan) for name in named if named[name] == 0}
    got = make(weights=named, **problem.options)(levels, problem.ids)
    close(got, torch.as_tensor(wanted, dtype=got.dtype), problem)
    same = make(weights={"a": 0.25, "b": 0.75}, **problem.options)({"a": problem.x, "b": problem.x}, problem.ids)
    close(same, problem.loss(), problem)


def test_the_table_holds_every_formula():
    """A formula that is added must obey the laws."""
    assert {name for _, name in GLOBAL} == set(formulas.GLOBAL_FORMULAS)
    assert {name for _, name in LOCAL} == set(formulas.LOCAL_FORMULAS)
