"""The Triton kernels in Triton's interpreter, on the CPU; `test_fused` runs this file in a process of its own.

The interpreter multiplies bfloat16 wrongly and sees neither races nor speed: those are for a GPU (`benchmarks.gpu`).
"""

import itertools
import math
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgl_losses import MultiScaleGlobalContrast, contrast
from mmgl_losses.contrast import operation, pair_logsumexp, pair_terms
from mmgl_losses.functional import local_supcon
from mmgl_losses.losses.formulas import supcon
from tests.strategies import contrasts
from tests.test_contrast import operands

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


@contextmanager
def tiles(x: int = 16, y: int = 32, programs: int = 8, few: int = 0):
    """Small tiles, so that small problems have many: the kernel "credit" takes squares of x.

    `few`: up to how many points nothing is sorted by torch and nothing cut into chunks.
    """
    from mmgl_losses.contrast.fused import plan

    def tile(kernel, *_):
        return plan.Tile(x, x if kernel == "credit" else y, 4, 1)

    with patch.multiple(plan, tile=tile, PROGRAMS=programs, NARROW=32, FEW=few):
        yield


@contextmanager
def deterministic(on: bool):
    """Also fills memory that nobody has written with NaN."""
    torch.use_deterministic_algorithms(on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(shape, dtype=torch.float64), dim=-1)


FACTORS = 1.0, -0.6, 0.05  # of log-sum-exps over positives and negatives and of the sum over positives, which is larger


def outcome(anchors, ids, options, *, dtype, impl, **kwargs):
    """All three results and the gradients of a fixed mixture of them, in float64."""
    anchors = anchors.to(dtype, copy=True).requires_grad_()
    leaves = [anchors]
    options = dict(options)
    if "keys" in options:
        options["keys"] = options["keys"].to(dtype, copy=True).requires_grad_()
        leaves.append(options["keys"])
    terms = pair_terms(anchors, ids, **options, impl=impl, **kwargs)
    results, total = (terms.positive_lse, terms.negative_lse, terms.positive_sum), 0.0
    for factor, result in zip(FACTORS, results, strict=True):
        weight = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype).view_as(result)
        total = total + factor * (torch.where(result.isfinite(), result, 0.0) * weight).sum()
    grads = torch.autograd.grad(total, leaves)
    return [x.detach().double() for x in (*results, *grads)]


def check(anchors, ids, options, **kwargs):
    """Float32 against float64, elementwise."""
    wanted = outcome(anchors, ids, options, dtype=torch.float64, impl="reference")
    got = outcome(anchors, ids, options, dtype=torch.float32, impl="fused", **kwargs)
    torch.testing.assert_close(got[:2], wanted[:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[2], wanted[2], rtol=1e-5, atol=1e-5 * (1 + wanted[2].abs().max().item()))
    for a, b in zip(got[3:], wanted[3:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * (1 + b.abs().max().item()))
    return got


def problem(name: str):
    """Anchors (2, n, d), ids and options: each name is what is special about them."""
    n, m, d = 45, 70, 5
    ids = torch.randint(3, (2, n)).sort(1).values * 7 - 3
    options: dict = {"temperature": 0.2}
    match name:
        case "one class":
            ids = torch.zeros_like(ids)
        case "no positives":
            ids = torch.arange(2 * n).view(2, n).flip(1)
        case "one class per tile":
            n, ids = 48, (torch.arange(48) // 16).expand(2, 48)
        case "ignored points":
            options["key_mask"] = options["anchor_mask"] = torch.rand(2, n) > 0.4
        case "keys that are no anchors":
            options["anchor_mask"] = torch.rand(2, n) > 0.5
        case "anchors that are no keys":
            options["key_mask"] = torch.rand(2, n) > 0.5
        case "a group without keys":
            options["key_mask"] = torch.tensor([True, False])[:, None].expand(2, n).contiguous()
        case "weights":
            options["key_log_weights"] = torch.randn(2, n)
        case "tolerance":
            options["tolerance"] = 7.0
        case "temperature that is trained":
            options["temperature"] = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        case "wide":
            d = 70
        case _:
            pass
    if name.startswith("keys of their own"):
        options |= {"keys": unit(2, m, d), "key_ids": torch.randint(3, (2, m)) * 7 - 3}
        if "self" in name:
            options["self_index"] = torch.randint(-1, m, (2, n))
        if "weights" in name:
            options |= {"key_log_weights": torch.randn(2, m), "key_mask": torch.rand(2, m) > 0.3}
        if "tolerance" in name:
            options["tolerance"] = 7.0
    return unit(2, n, d), ids, options


NAMES = [
    "plain", "one class", "no positives", "one class per tile", "ignored points", "keys that are no anchors",
    "anchors that are no keys", "a group without keys", "weights", "tolerance", "temperature that is trained", "wide",
    "keys of their own", "keys of their own, self", "keys of their own, weights", "keys of their own, tolerance",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_the_reference(name):
    """With a shift and with maxima, credited and by rows, as few points and as many; new memory is NaN in two of them."""
    anchors, ids, options = problem(name)
    with tiles():
        check(anchors, ids, options, bound=1.0)
        with deterministic(True):
            b = check(anchors, ids, options, bound=None)
    with tiles(few=100), deterministic(True):
        a = check(anchors, ids, options, bound=1.0)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@given(case=contrasts(), x=st.sampled_from([16, 32]), promise=st.booleans(), few=st.sampled_from([0, 1000]))
@settings(max_examples=12)
def test_agrees_on_any_problem(case, x, promise, few):
    anchors, ids, options = case
    with tiles(x, 16, few=few), deterministic(promise):
        check(anchors, ids, options, bound=12.0 if promise else None)


@pytest.mark.parametrize("x", [16, 64])
@pytest.mark.parametrize("programs", [1, 64])
def test_any_cut_gives_the_same(x, programs):
    """Even and odd numbers of tiles around the circle, one program and many for a row of tiles."""
    ids = torch.arange(65) % 2
    with tiles(x, 16, programs):
        for n in (16, 33, 64, 65):
            check(unit(1, n, 4), ids[None, :n], {"temperature": 0.1}, bound=1.0)


def loss_of(x, labels, impl, **options):
    """A loss of feature maps and its gradient, times a number."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    loss = local_supcon(leaf, labels, impl=impl, **options)
    return loss.detach().double(), torch.autograd.grad(1.7 * loss, leaf)[0].double()


LOSSES = {
    "supcon": {}, "supcon_in": {"formula": "supcon_in"}, "mmgl": {"formula": "mmgl"},
    "ignored points": {"ignore_index": 1}, "background repels": {"background": "key"},
    "background repels, ignored points": {"background": "key", "ignore_index": 2, "formula": "mmgl"},
    "maxima": {"temperature": 0.003}, "one group": {"pairs": "batch"},
}  # fmt: skip


@pytest.mark.parametrize("few", [0, 1000])
@pytest.mark.parametrize("name", LOSSES)
def test_the_mean_is_taken_in_the_kernels(name, few):
    """In two groups of points, of which one may have no positives; lengths differ, and one has no direction."""
    options, features = LOSSES[name], torch.randn(2, 5, 6, 7) * torch.logspace(-3, 3, 7)
    features[:, :, 2, 3] = 0.0
    labels = torch.randint(3, (2, 6, 7))
    if name != "one group":
        labels[0] = torch.arange(42).view(6, 7) + 10
    with tiles(few=few), deterministic(True), patch.object(contrast, "terms", side_effect=AssertionError):
        got = loss_of(features, labels, "fused", **options)
    wanted = loss_of(features.double(), labels, "reference", **options)
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-6)
    scale = wanted[1].flatten(2).norm(dim=1)[:, None].view(2, 1, 6, 7)  # a short vector has a large gradient
    torch.testing.assert_close(got[1] / (scale + 1e-9), wanted[1] / (scale + 1e-9), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["two halves", "decoupled", "tolerance", "keys", "nothing counts"])
def test_the_mean_of_each_level_is_taken_in_the_kernels(name):
    """Levels are groups, weighted by torch, and each gets its own gradient; keys get theirs."""
    e, keys = [torch.randn(10, d) for d in (8, 5)], [torch.randn(20, d) for d in (8, 5)]
    module, given = MultiScaleGlobalContrast, {"weights": (0.3, 0.7)}
    instances, more = None, {}
    if name == "decoupled":
        given["formula"] = "decoupled"
    elif name == "tolerance":
        given["tolerance"], instances = 1.5, torch.randint(9, (10,))
    elif name == "keys":
        instances, more = torch.arange(10) % 5, {"key_instances": torch.randint(5, (20,))}
    elif name == "nothing counts":
        instances = torch.arange(10)

    def outcome_of(impl, dtype):
        leaves = [x.to(dtype, copy=True).requires_grad_() for x in (*e, *(keys if more else ()))]
        if more:
            more["keys"] = leaves[2:]
        loss = module(**given, impl=impl)(leaves[:2], instances, **more)
        return [loss.detach().double(), *(x.double() for x in torch.autograd.grad(loss, leaves))]

    with tiles(few=1000), deterministic(True), patch.object(contrast, "terms", side_effect=AssertionError):
        got = outcome_of("fused", torch.float32)
    torch.testing.assert_close(got, outcome_of("reference", torch.float64), rtol=1e-4, atol=1e-5)


def test_half_precision_features_are_read_as_they_are():
    """Their gradient comes back in their type, and is nearly that of float32."""
    features, labels = torch.randn(2, 8, 5, 5, dtype=torch.float16), torch.randint(3, (2, 5, 5))
    with tiles(few=1000):
        leaf = features.clone().requires_grad_()
        local_supcon(leaf, labels, impl="fused").backward()
        got = loss_of(features, labels, "fused")
    assert leaf.grad.dtype == torch.float16
    wanted = loss_of(features.double(), labels, "reference")
    torch.testing.assert_close(got[0], wanted[0], rtol=1e-3, atol=1e-3)
    assert (got[1] - wanted[1]).norm() <= 3e-3 * wanted[1].norm()


def test_the_mean_has_no_second_derivative_and_says_so():
    x = torch.randn(1, 4, 3, 3, requires_grad=True)
    with tiles(few=1000):
        (grad,) = torch.autograd.grad(local_supcon(x, torch.zeros(1, 3, 3).long(), impl="fused"), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("change", ["vmap", "compiled", "own formula"])
def test_where_the_mean_is_made_of_terms(change):
    """Transforms of functions and the compiler see the terms, and get the same loss."""
    x, labels = torch.randn(2, 4, 3, 3), torch.arange(9).view(1, 3, 3).expand(2, -1, -1) % 2
    formula = (lambda terms: supcon(terms)) if change == "own formula" else "supcon"

    def loss(x):
        return local_supcon(x, labels, impl="fused", formula=formula)

    with tiles(few=1000):
        wanted = local_supcon(x.double(), labels, impl="reference")
        if change == "vmap":
            got = torch.vmap(loss)(x[None].expand(3, -1, -1, -1, -1))[1]
        else:
            got = torch.compile(loss, fullgraph=True, backend="eager")(x) if change == "compiled" else loss(x)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)


def low(anchors, ids, temperature, dtype):
    """Plain torch in a type throughout: what a user has without kernels."""
    z = (anchors * temperature**-0.5).to(dtype).requires_grad_()
    same = ids[..., None] == ids[..., None, :]
    itself = torch.eye(ids.shape[-1], dtype=torch.bool)
    logits = z @ z.mT
    results = [logits.masked_fill(m, -torch.inf).logsumexp(-1) for m in (~same | itself, same)]
    results.append(logits.masked_fill(~same | itself, 0).sum(-1))
    total = sum(
        f * (x * torch.linspace(0.5, 1.5, x.numel()).view_as(x)).sum() for f, x in zip(FACTORS, results, strict=True)
    )
    return [*(x.detach().double() for x in results), torch.autograd.grad(total, z)[0].double() * temperature**-0.5]


def test_half_precision_is_at_most_twice_as_far_off_as_plain_torch():
    anchors, ids, options = unit(2, 64, 24), (torch.arange(64) % 4).expand(2, 64), {"temperature": 0.07}
    exact = outcome(anchors, ids, options, dtype=torch.float64, impl="reference")
    plain = low(anchors, ids, 0.07, torch.float16)
    with tiles(32, 32):
        got = outcome(anchors, ids, options, dtype=torch.float32, impl="fused", bound=1.0, precision=torch.float16)
        half = outcome(anchors, ids, options, dtype=torch.float16, impl="fused", bound=1.0)
    for a, b, c in zip(got, plain, exact, strict=True):
        assert 0 < (a - c).abs().max() <= 2 * (b - c).abs().max()
    assert (half[0] - exact[0]).abs().max() < 0.05  # the type of the anchors is the type that multiplies


@pytest.mark.parametrize("scale", [1e-35, 1e30])
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_gradients_of_any_size(scale, precision):
    """Factors of exponentials reach exp(-88): tiny and huge upstream gradients keep their digits."""
    z, ids = unit(1, 40, 4).float(), (torch.arange(40) % 2)[None]
    grads = []
    for size in (1.0, scale):
        x = z.clone().requires_grad_()
        with tiles(32, 32):
            result = pair_logsumexp(x, ids, temperature=0.015, bound=1.0, impl="fused", precision=precision)
            grads.append(torch.autograd.grad((size * (result.negatives - result.positives)).sum(), x)[0] / size)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-4 * grads[0].abs().max().item())


@pytest.mark.parametrize("bound", [None, 1.0])
def test_no_overflow_at_tiny_temperatures(bound):
    z = torch.zeros(40, 2)
    z[:, 0] = 1.0
    z[20:, 0] = -1.0
    z.requires_grad_()
    with tiles(32, 32):
        result = pair_logsumexp(z, torch.arange(40) // 20, temperature=0.002, bound=bound, impl="fused")
        (result.positives - result.negatives).sum().backward()
    torch.testing.assert_close(result.positives, torch.full((40,), 500.0) + torch.tensor(19.0).log())
    torch.testing.assert_close(result.negatives, torch.full((40,), -500.0) + torch.tensor(20.0).log())
    assert z.grad.isfinite().all()


def test_many_equal_vectors_do_not_overflow():
    """Every logit is 84, and a sum of exponentials is 255 e^84, beyond float32."""
    z = torch.nn.functional.one_hot(torch.zeros(256, dtype=torch.long), 4).float()
    with tiles(64, 64):
        got = pair_logsumexp(z, torch.zeros(256), temperature=1 / 84, bound=1.0, impl="fused")
    torch.testing.assert_close(got.positives, torch.full((256,), 84 + math.log(255)))


def test_weights_count_in_the_range():
    """Either would fit on its own: logits up to 50, and weights up to exp(42)."""
    anchors, ids, options = problem("plain")
    options |= {"temperature": 0.02, "key_log_weights": torch.tensor([-42.0, 42.0]).repeat(45)[:90].view(2, 45)}
    with tiles(32, 32):
        check(anchors, ids, options, bound=1.0)


@pytest.mark.parametrize("separate", [False, True])
def test_tiles_around_the_last_key(separate):
    """Anchors beyond the last key are sorted anew: a tile may begin and end in one class with another in between."""
    keys, others = [0] * 16 + [1] * 16 + [2] * 24, [0] * 4 + [2] * 20
    ids = torch.tensor([keys + others])
    taken = (torch.arange(80) < 56)[None]
    options = {"temperature": 0.3, "key_mask": taken}
    if separate:
        options |= {"keys": unit(1, 80, 4), "key_ids": ids}
    with tiles(16, 16):
        for bound, by_rows in ((1.0, False), (1.0, True), (None, False)):
            with deterministic(by_rows):
                check(unit(1, 80, 4), ids, options, bound=bound)


def test_rows_that_take_no_part_may_hold_nan():
    anchors, ids, options = problem("ignored points")
    poisoned = torch.where(options["anchor_mask"][..., None], anchors, torch.nan)
    with tiles(), deterministic(True):
        clean = outcome(anchors, ids, options, dtype=torch.float32, impl="fused", bound=1.0)
        dirty = outcome(poisoned, ids, options, dtype=torch.float32, impl="fused", bound=1.0)
    torch.testing.assert_close(dirty, clean, rtol=0, atol=0)


def test_channels_more_than_two_to_the_31_apart():
    """Of a large volume: offsets within a point do not fit into 32 bits. Memory is reserved, and hardly any used."""
    channel = 2**30 + 5
    far = torch.empty(2 * channel + 5, dtype=torch.float16).as_strided((1, 3, 5), (0, channel, 1))
    near = torch.randn(1, 3, 5).half()
    far.copy_(near)
    labels = torch.tensor([[0, 1, 0, 1, 1]])
    with tiles(few=1000):
        got, wanted = (local_supcon(features, labels, impl="fused") for features in (far, near))
    assert got == wanted


def test_only_the_gradients_asked_for():
    """Of anchors, of keys, of both or of neither, and each is what it is where both are asked for."""
    anchors, ids, options = problem("keys of their own, self")
    keys = options.pop("keys").float()
    found = {}
    with tiles():
        for first, second in itertools.product((True, False), repeat=2):
            z, k = anchors.float().requires_grad_(first), keys.clone().requires_grad_(second)
            terms = pair_terms(z, ids, keys=k, **options, impl="fused")
            assert terms.positive_lse.requires_grad == (first or second)
            if first or second:
                (terms.negative_lse + 0.3 * terms.positive_sum).sum().backward()
            found[first, second] = z.grad, k.grad
    assert found[False, False] == (None, None)
    assert not any(grad is None for grad in found[True, True])
    torch.testing.assert_close((found[True, False][0], found[False, True][1]), found[True, True])
    assert found[True, False][1] is None
    assert found[False, True][0] is None


def test_the_operation_keeps_its_contract_and_compiles():
    z, ids = torch.randn(2, 20, 4), torch.randint(4, (2, 20))
    arguments = operands(z, ids.float(), {"temperature": 0.5, "bound": 30.0}, "fused")

    def loss(z):
        terms = pair_terms(z, ids, temperature=0.5, bound=30.0, impl="fused")
        valid = terms.n_positives > 0
        return torch.where(valid, terms.negative_lse - terms.positive_lse, 0.0).sum()

    with tiles(32, 32):
        torch.library.opcheck(operation._operator, arguments)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        a, b = z.clone().requires_grad_(), z.clone().requires_grad_()
        wanted, got = loss(a), compiled(b)
        torch.testing.assert_close(got, wanted)
        torch.testing.assert_close(torch.autograd.grad(got, b), torch.autograd.grad(wanted, a))
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(loss(a), wanted)


def test_empty():
    for shape, ids in (((0, 3), (0,)), ((2, 0, 3), (2, 0)), ((0, 5, 3), (0, 5))):
        z = torch.zeros(shape, requires_grad=True)
        terms = pair_terms(z, torch.zeros(ids).long(), temperature=1.0, impl="fused")
        assert terms.positive_lse.shape == ids
        terms.positive_lse.sum().backward()
        assert z.grad.shape == shape


def test_what_cannot_be_fused_says_so():
    for z, text in ((torch.zeros(4, 3).double(), "float32 or half precision"), (torch.zeros(4, 300), "at most 256")):
        with pytest.raises(ValueError, match=text):
            pair_logsumexp(z, torch.zeros(4), temperature=1.0, impl="fused")
    with pytest.raises(ValueError, match="float32 or half precision"):
        pair_logsumexp(torch.eye(4), torch.zeros(4), temperature=1.0, impl="fused", precision=torch.float64)
