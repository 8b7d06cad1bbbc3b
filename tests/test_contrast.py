"""The primitive against loops in float64, in every option, implementation and size of tile."""

import inspect
import math
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmgl_losses.contrast import PairTerms, arguments, operation, pair_logsumexp, pair_terms
from mmgl_losses.contrast.tiled import strips, tiles
from tests import oracles
from tests.problems import IMPLEMENTATIONS
from tests.strategies import contrasts, matrices

OPTIONS = list(inspect.signature(pair_logsumexp).parameters)[3:]  # after anchors, ids and temperature


@contextmanager
def small_tiles(rows: int, few: int = 32):
    """Tiles and strips of `rows` rows, so that small problems have many; strips for no more than `few` classes."""
    rows = max(rows, 1)
    with (
        patch.multiple(tiles, ROWS=rows, COLUMNS=2 * rows - 1),
        patch.multiple(strips, ROWS=rows, ELEMENTS=2 * rows * rows, STRIPS=1, CLASSES=few),
    ):
        yield


def gradients(outputs, inputs):
    """Gradients of a fixed mixture of the finite outputs."""
    total = inputs[0].new_zeros(())
    for factor, output in zip((1.0, -0.6, 0.3, 0.2), outputs, strict=False):
        weight = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype).view_as(output)
        total = total + factor * (torch.where(output.isfinite(), output, 0.0) * weight).sum()
    total = total + sum(0.0 * x.sum() for x in inputs)  # a graph even where nothing contributes
    return torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(problem=contrasts(), rows=st.sampled_from([1, 2, 3, 8]), few=st.sampled_from([0, 32]), promise=st.booleans())
def test_matches_loops(impl, problem, rows, few, promise):
    anchors, ids, options = problem
    inputs = [x.requires_grad_() for x in (anchors, options.get("keys")) if x is not None]
    expected = oracles.pair_logsumexp(anchors, ids, **options)
    bound = 12.0 if promise else None  # |anchor . key| <= 3 * 2 * 2
    with small_tiles(rows, few):
        terms = pair_terms(anchors, ids, **options, bound=bound, impl=impl)
        lse = pair_logsumexp(anchors, ids, **options, bound=bound, impl=impl)
        torch.testing.assert_close(tuple(lse), expected[:4], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(terms.positive_sum, expected[4], rtol=1e-12, atol=1e-9)
        wanted = gradients((expected[0], expected[1], expected[4]), inputs)
        got = gradients((terms.positive_lse, terms.negative_lse, terms.positive_sum), inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("wanted", [0, 1], ids=["anchors", "keys"])
@pytest.mark.parametrize("tolerance", [None, 1.0])
def test_gradients_of_one_side_alone(impl, wanted, tolerance):
    """They are what they are beside the other's."""
    anchors, keys = torch.randn(2, 9, 3, dtype=torch.float64), torch.randn(2, 12, 3, dtype=torch.float64)
    ids, key_ids = torch.arange(9).expand(2, 9) % 4, torch.arange(12).expand(2, 12) % 5
    options = {"temperature": 0.5, "tolerance": tolerance, "self_index": torch.arange(9).expand(2, 9), "impl": impl}

    def grads(*sides):
        leaves = [x.clone().requires_grad_(side in sides) for side, x in enumerate((anchors, keys))]
        terms = pair_terms(leaves[0], ids, keys=leaves[1], key_ids=key_ids, **options)
        return gradients((terms.positive_lse, terms.negative_lse, terms.positive_sum), [leaves[i] for i in sides])

    with small_tiles(4):
        torch.testing.assert_close(grads(wanted)[0], grads(0, 1)[wanted])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@given(problem=contrasts())
def test_rows_that_take_no_part_may_hold_nan(impl, problem):
    anchors, ids, options = problem
    n = len(anchors)
    out = options.setdefault("anchor_mask", torch.arange(n) % 2 == 0)
    unused = ~out
    if "keys" not in options:
        key_mask = options.setdefault("key_mask", out.clone())
        unused = unused & ~key_mask
    poisoned = anchors.clone()
    poisoned[unused] = math.nan
    results = []
    for z in (anchors, poisoned):
        z.requires_grad_()
        terms = pair_terms(z, ids, **options, impl=impl)
        results.append((tuple(terms), gradients((terms.positive_lse, terms.negative_lse, terms.positive_sum), [z])[0]))
    torch.testing.assert_close(results[0][0][:3], results[1][0][:3], rtol=0, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=0)
    assert (results[1][1][unused] == 0).all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("separate", [False, True])
def test_ids_of_rows_that_take_no_part_may_be_nan(impl, separate):
    z, ids = torch.randn(9, 3), torch.tensor([2.0, 0.0, 9.0, 1.0, 9.0, 0.0, 2.0, 9.0, 1.0])
    mask = ids != 9
    options = {"temperature": 0.5, "key_mask": mask, "anchor_mask": mask, "impl": impl}
    if separate:
        options |= {"keys": z.flip(0)}
    results = []
    for lost in (9.0, math.nan):
        held = torch.where(mask, ids, lost)
        results.append(pair_terms(z, held, **options, **({"key_ids": held} if separate else {})))
    torch.testing.assert_close(tuple(results[1]), tuple(results[0]), rtol=0, atol=0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("separate", [False, True])
def test_rows_that_take_no_part_do_not_reach_the_temperature(impl, separate):
    z, ids, mask = torch.randn(6, 3), torch.arange(6) % 2, torch.arange(6) < 5
    z[5] = math.nan
    temperature = torch.tensor(0.5, requires_grad=True)
    options = {"keys": z[:4], "key_ids": ids[:4]} if separate else {"key_mask": mask}
    terms = pair_terms(z, ids, temperature=temperature, anchor_mask=mask, impl=impl, **options)
    total = torch.where(mask, terms.positive_lse + terms.self_logit + terms.positive_sum, 0.0).sum()
    assert torch.autograd.grad(total, temperature)[0].isfinite()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("tolerance", [None, 1.0])
@pytest.mark.parametrize("separate", [False, True])
def test_groups_are_independent(impl, tolerance, separate):
    z = torch.randn(2, 3, 7, 4, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(3, (2, 3, 7))
    options = {"key_mask": torch.rand(2, 3, 7) > 0.3}
    if separate:
        options = {"keys": torch.randn(2, 3, 5, 4, dtype=torch.float64), "key_ids": torch.randint(3, (2, 3, 5))}
        options["self_index"] = torch.randint(-1, 5, (2, 3, 7))

    whole = pair_terms(z, ids, temperature=0.5, tolerance=tolerance, impl=impl, **options)
    factor = torch.randn(3, 2, 3, 7, dtype=torch.float64)
    (grad,) = torch.autograd.grad(mixture(whole, factor), z)
    for a in range(2):
        for b in range(3):
            x = z[a, b].detach().requires_grad_()
            part = {name: value[a, b] for name, value in options.items()}
            single = pair_terms(x, ids[a, b], temperature=0.5, tolerance=tolerance, impl=impl, **part)
            torch.testing.assert_close(tuple(t[a, b] for t in whole), tuple(single))
            torch.testing.assert_close(grad[a, b], torch.autograd.grad(mixture(single, factor[:, a, b]), x)[0])


def mixture(terms, factor):
    """A sum of the finite ones of the first three terms, each with a factor of its own."""
    return sum(torch.where(x.isfinite(), x, 0.0).mul(f).sum() for x, f in zip(terms[:3], factor, strict=True))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("bound", [None, 1.0])
@pytest.mark.parametrize("separate", [False, True])
def test_gradcheck(impl, bound, separate):
    z = torch.nn.functional.normalize(torch.randn(2, 7, 3, dtype=torch.float64), dim=-1).requires_grad_()
    k = torch.nn.functional.normalize(torch.randn(2, 5, 3, dtype=torch.float64), dim=-1).requires_grad_()
    ids, key_ids = torch.tensor([[0, 1, 1, 2, 0, 1, 3]] * 2), torch.tensor([[1, 0, 2, 1, 0]] * 2)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def run(z, k, temperature):
        options = {"keys": k, "key_ids": key_ids} if separate else {}
        terms = pair_terms(z, ids, temperature=temperature, bound=bound, impl=impl, **options)
        return tuple(torch.where(t.isfinite(), t, 0.0) for t in terms[:4])

    with small_tiles(3):
        assert torch.autograd.gradcheck(run, (z, k, temperature))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("separate", [False, True])
def test_a_temperature_that_is_a_tensor_is_that_number(impl, separate):
    z, ids = torch.randn(7, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 2, 0, 1, 2])
    keys = {"keys": z.flip(0), "key_ids": ids} if separate else {}
    number = pair_terms(z, ids, temperature=0.3, impl=impl, **keys)
    tensor = pair_terms(z, ids, temperature=torch.tensor(0.3, dtype=torch.float64), impl=impl, **keys)
    torch.testing.assert_close(tuple(tensor), tuple(number))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_bound_is_one_beside_a_temperature_that_is_a_tensor(impl):
    """It is a bound of the products: of the logits it is that over the temperature, 1,000 here."""
    z, ids = (
        torch.nn.functional.normalize(torch.randn(7, 3, dtype=torch.float64), dim=1),
        torch.tensor([0, 1, 1, 2, 0, 1, 2]),
    )
    number = pair_logsumexp(z, ids, temperature=0.001, bound=1.0, impl=impl)
    tensor = pair_logsumexp(z, ids, temperature=torch.tensor(0.001, dtype=torch.float64), bound=1.0, impl=impl)
    torch.testing.assert_close(tuple(tensor), tuple(number))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("ids", [[0, 0, 1, 2], [0, 0, 0, 0]], ids=["no positives", "no negatives"])
def test_what_arrives_in_rows_without_pairs_goes_no_further(impl, ids):
    """Their log-sum-exp is -inf, and what is computed from that may well send NaN back."""
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    terms = pair_terms(z, torch.tensor(ids), temperature=0.5, impl=impl)
    empty = terms.n_positives == 0, terms.n_negatives == 0, terms.n_positives == 0
    upstream = [torch.where(none, torch.nan, torch.ones_like(x)) for none, x in zip(empty, terms, strict=False)]
    (grad,) = torch.autograd.grad(terms[:3], z, upstream)
    assert grad.isfinite().all()


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_second_derivatives_are_right_or_refused(impl):
    """A gradient that comes without a graph of its own would silently be a constant to whoever differentiates it."""
    z = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)

    def run(z):
        return pair_logsumexp(z, torch.tensor([0, 1, 1, 2, 0, 1, 2]), temperature=0.5, impl=impl)[:2]

    if impl == "reference":
        assert torch.autograd.gradgradcheck(run, (z,))
        return
    (grad,) = torch.autograd.grad(sum(x.sum() for x in run(z)), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="impl='reference' for second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("masked", ["none", "keys", "anchors", "both", "apart", "all"])
@pytest.mark.parametrize("elements", [1, 10, 80, 1 << 20])
@pytest.mark.parametrize("classes", [1, 4])
def test_points_of_few_classes_go_in_strips(masked, elements, classes):
    """Groups one by one or together, in thin strips or whole, beside the reference; tiles would have been refused."""
    z = torch.nn.functional.normalize(torch.randn(3, 20, 4, dtype=torch.float64), dim=-1).requires_grad_()
    ids, mask, other = 5 - torch.randint(classes, (3, 20)), torch.rand(3, 20) > 0.3, torch.rand(3, 20) > 0.6
    options = {
        "none": {},
        "keys": {"key_mask": mask},
        "anchors": {"anchor_mask": other},
        "both": {"key_mask": mask, "anchor_mask": mask},
        "apart": {"key_mask": mask, "anchor_mask": other},
        "all": {"key_mask": mask & False, "anchor_mask": other & False},
    }[masked]
    results = []
    with patch.multiple(strips, ELEMENTS=elements, ROWS=3), patch.multiple(tiles, forward=None, backward=None):
        for impl in ("tiled", "reference"):
            terms = pair_terms(z, ids, temperature=0.2, bound=1.0, impl=impl, **options)
            parts = terms.positive_lse, terms.negative_lse, terms.positive_sum
            results.append((*terms, *gradients(parts, [z])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-11, atol=1e-11)


def test_points_that_take_no_part_cost_nothing():
    """One anchor and three more keys among a thousand points: no exponential of any other pair is taken."""
    z = torch.nn.functional.normalize(torch.randn(2, 1000, 4), dim=-1)
    ids = torch.zeros(2, 1000, dtype=torch.int64)
    anchor, key = torch.arange(1000) == 500, torch.arange(1000) % 250 == 0
    seen = []
    taken = strips._blocks

    def watched(points):
        for block in taken(points):
            seen.append(block.values.shape)
            yield block

    with patch.object(strips, "_blocks", watched):
        pair_logsumexp(
            z, ids, temperature=0.1, bound=1.0, impl="tiled",
            anchor_mask=anchor.expand(2, -1), key_mask=key.expand(2, -1),
        )  # fmt: skip
    assert seen == [(2, 1, 4)]


@given(problem=contrasts(), rows=st.sampled_from([1, 3]), few=st.sampled_from([0, 32]))
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_the_operation_keeps_its_contract(impl, problem, rows, few):
    """opcheck: schema, fake tensors, autograd registration."""
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    with small_tiles(rows, few):
        torch.library.opcheck(operation._operator, operands(*problem, impl), test_utils=utils)


def operands(anchors, ids, options, impl):
    """The arguments of the operator, leaves of a graph where it has gradients."""
    given = {**dict.fromkeys(OPTIONS), "bound": 12.0, **options, "impl": impl}
    problem, _ = arguments.problem(anchors.detach(), ids.double(), **given)
    values = problem.values()
    return *(x if x is None else x.detach().requires_grad_() for x in values[:2]), *values[2:], impl


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("few", [0, 32])
def test_the_operation_compiles_with_dynamic_shapes(rows, few):
    problem = operands(torch.randn(6, 3), torch.tensor([0, 0, 1, 1, 2, 0]), {"temperature": 0.5}, "tiled")
    with small_tiles(rows, few):
        torch.library.opcheck(operation._operator, problem)


@given(
    x=matrices(12, 3),
    rows=st.sampled_from([1, 2, 5, 7, 12]),
    labels=st.lists(st.integers(0, 2), min_size=12, max_size=12),
)
def test_tile_size_changes_nothing(x, rows, labels):
    ids = torch.tensor(labels)
    results = []
    for height in (0, rows, 64):
        x.requires_grad_()
        with small_tiles(height):
            terms = pair_terms(x, ids, temperature=0.7, bound=12.0, impl="tiled")
            results.append((*terms[:3], *gradients(terms[:3], [x])))
    torch.testing.assert_close(results[0], results[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results[0], results[2], rtol=1e-12, atol=1e-12)


@given(
    ids=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    count=st.integers(0, 60),
    rows=st.integers(1, 16),
    mirrored=st.booleans(),
    whole=st.booleans(),
)
def test_tiles_cover_every_pair_once(ids, count, rows, mirrored, whole):
    """Over sorted ids: each pair is in one tile or the mirror image of one, in a segment of the right kind."""
    count = min(count, len(ids))
    ids = sorted(ids[:count]) + sorted(ids[count:])
    lo = [next((j for j in range(count) if ids[j] >= i), count) for i in ids]
    hi = [next((j for j in range(count) if ids[j] > i), count) for i in ids]
    seen: dict = {}
    with small_tiles(rows):
        for tile in tiles.tiles(lo, hi, count, own=True, mirrored=mirrored, whole=whole):
            for i in range(tile.top, tile.end):
                for a, b, kind in tile.segments:
                    for j in range(a, b):
                        same = ids[i] == ids[j]
                        assert kind == "mixed" or same == (kind == "positive")
                        pairs = [(i, j)]
                        if tile.mirrored and j >= tile.end:
                            pairs.append((j, i))
                        for pair in pairs:
                            seen[pair] = seen.get(pair, 0) + 1
    assert seen == {(i, j): 1 for i in range(len(ids)) for j in range(count)}


@pytest.mark.parametrize("temperature", [0.0122, 0.07, 1.0])
@pytest.mark.parametrize("n", [300, 1500])
def test_range_and_precision_in_float32(temperature, n):
    """One shift down to 0.0122: value and gradient as near to float64 as the plain computation."""
    z = torch.randn(n, 16, dtype=torch.float64)
    z[: n // 3] = z[0] + 0.05 * z[: n // 3]  # a tight cluster: the largest logits
    z = torch.nn.functional.normalize(z, dim=-1)
    ids = (torch.arange(n) * 3 // n) % 3
    errors = {}
    exact = None
    single = [(impl, torch.float32) for impl in IMPLEMENTATIONS]
    for impl, dtype in (("reference", torch.float64), *single):
        x = z.to(dtype).requires_grad_()
        terms = pair_terms(x, ids, temperature=temperature, bound=1.0, impl=impl)
        loss = torch.logaddexp(terms.positive_lse, terms.negative_lse).mean()
        result = torch.cat([loss.detach().double()[None], torch.autograd.grad(loss, x)[0].double().flatten()])
        exact = result if exact is None else exact
        errors[impl, dtype] = (
            (result - exact)[1:].norm() / exact[1:].norm(),
            (result - exact)[0].abs() / exact[0].abs(),
        )
    plain = errors["reference", torch.float32]
    for ours in (errors[impl] for impl in single):
        assert ours[0] <= 2 * plain[0] + 1e-6
        assert ours[1] <= 2 * plain[1] + 1e-6


@pytest.mark.parametrize("largest", [500.0, 87.0])
@pytest.mark.parametrize("bound", [None, 1.0])
@pytest.mark.parametrize("value", [1.0, -1.0])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_overflow_at_tiny_temperatures(largest, bound, value, impl):
    """All pairs at the extreme logit, beyond float32's exp or beyond it in their sum: the log-sum-exp is exact."""
    z = torch.zeros(40, 2)
    z[:, 0] = 1.0
    z[20:, 0] = value
    z.requires_grad_()
    ids = torch.arange(40) // 20
    result = pair_logsumexp(z, ids, temperature=1 / largest, bound=bound, impl=impl)
    torch.testing.assert_close(result.positives, torch.full((40,), largest + math.log(19)))
    torch.testing.assert_close(result.negatives, torch.full((40,), largest * value + math.log(20)))
    (result.positives - result.negatives).sum().backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("tolerance", [None, 0.5])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ids_of_both_zeros_are_one(tolerance, impl):
    """0.0 and -0.0 are equal numbers of other bits, which an engine that sorts ids may sort by."""
    ids = torch.tensor([-0.0, 1.0, 0.0, -1.0, -0.0])
    result = pair_logsumexp(torch.randn(5, 2), ids, temperature=1.0, tolerance=tolerance, impl=impl)
    assert result.n_positives.tolist() == [2, 0, 2, 0, 2]
    assert result.n_negatives.tolist() == [2, 4, 2, 4, 2]


@pytest.mark.parametrize("size", [1e16, 1e18])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_no_logit_is_lost_among_what_does_not_count(size, impl):
    """Far below all that an engine may put in the place of a pair that does not count."""
    z = torch.tensor([[size, 0.0], [-size, 0.0]])
    result = pair_logsumexp(z, torch.tensor([0, 1]), temperature=1.0, impl=impl)
    torch.testing.assert_close(result.negatives, torch.full((2,), -size * size))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_half_precision_is_summed_in_float32(dtype, impl):
    z = torch.nn.functional.normalize(torch.randn(50, 8), dim=-1).to(dtype)
    ids = torch.arange(50) % 4
    half = pair_terms(z.requires_grad_(), ids, temperature=0.07, impl=impl)
    wide = pair_terms(z.detach().double(), ids, temperature=0.07, impl="reference")
    assert half.positive_lse.dtype == torch.float32
    for a, b in zip(half[:4], wide[:4], strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-4)
    half.negative_lse.sum().backward()
    assert z.grad.dtype == dtype


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_autocast_changes_nothing(impl):
    z = torch.randn(60, 8, requires_grad=True)
    ids = torch.arange(60) % 4
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            terms = pair_terms(z, ids, temperature=0.5, impl=impl)
            loss = (terms.positive_lse - terms.negative_lse).sum()
            if impl != "reference":  # its backward is its own, so it may even run inside autocast
                results.append((loss, torch.autograd.grad(loss, z, retain_graph=True)[0]))
        results.append((loss, torch.autograd.grad(loss, z)[0]))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.parametrize("impl", ["auto", *IMPLEMENTATIONS])
def test_compiles_whole(impl):
    z, ids = torch.randn(2, 30, 4), torch.randint(4, (2, 30))

    def loss(z):
        terms = pair_terms(z, ids, temperature=0.5, bound=30.0, impl=impl)
        valid = terms.n_positives > 0
        return torch.where(valid, terms.negative_lse - terms.positive_lse, 0.0).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
    wanted, got = loss(a), compiled(b)
    torch.testing.assert_close(got, wanted)
    torch.testing.assert_close(torch.autograd.grad(got, b), torch.autograd.grad(wanted, a))


def test_memory_is_linear():
    """No buffer of all pairs: the largest tensor made is a tile."""
    n = 6000
    z, ids = torch.randn(n, 4, requires_grad=True), torch.arange(n) % 5
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(result):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // x.element_size())
            return result

    with Watch():
        terms = pair_terms(z, ids, temperature=0.5, bound=30.0, impl="tiled")
        terms.negative_lse.sum().backward()
    assert largest <= 2 * tiles.ROWS * tiles.COLUMNS
    assert largest < n * n / 8


def test_empty():
    for shape, ids in (((0, 3), (0,)), ((2, 0, 3), (2, 0)), ((0, 5, 3), (0, 5))):
        for impl in IMPLEMENTATIONS:
            terms = pair_terms(
                torch.zeros(shape, requires_grad=True), torch.zeros(ids).long(), temperature=1.0, impl=impl
            )
            assert terms.positive_lse.shape == ids
            terms.positive_sum.sum().backward()


def test_terms_are_named():
    assert PairTerms._fields == (
        "positive_lse", "negative_lse", "positive_sum", "self_logit", "n_positives", "n_negatives",
    )  # fmt: skip
