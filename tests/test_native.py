"""The native engine beside the reference: sizes that fill no tile, threads, processes, layouts, and what it refuses.

That it obeys the oracle and the laws is tested where those are, as of any engine.
"""

import os
import threading
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from benchmarks import local
from benchmarks.case import Case
from benchmarks.measure import errors, in_own_process
from mmgl_losses import contrast
from mmgl_losses.contrast import engines, native, pair_logsumexp, pair_terms
from mmgl_losses.functional import global_contrast, local_supcon
from mmgl_losses.losses import formulas
from tests.problems import NATIVE

built = pytest.mark.skipif(not NATIVE, reason="the native engine was not built here")
FEATURES = (1, 8, 17, 64)


def points(groups, n, d, dtype=torch.float64):
    return normalize(torch.randn(groups, n, d, dtype=torch.float64), dim=-1).to(dtype)


def results(z, ids, impl, **options):
    """All results and the gradients of a mixture of them."""
    keys = options.pop("keys", None)
    leaves = [x.clone().requires_grad_() for x in (z, keys) if x is not None]
    if keys is not None:
        options["keys"] = leaves[1]
    terms = pair_terms(leaves[0], ids, temperature=options.pop("temperature", 0.1), impl=impl, **options)
    weights = torch.linspace(0.5, 1.5, 3 * ids.numel(), dtype=z.dtype).view(3, *ids.shape)
    total = sum((torch.where(x.isfinite(), x, 0.0) * w).sum() for x, w in zip(terms[:3], weights, strict=True))
    return *terms, *torch.autograd.grad(total, leaves)


def problem(kind, n, d, dtype=torch.float64, unit=True):
    """Three groups, the last without any positive where anchors are the keys."""
    ids = torch.stack([torch.randint(3, (n,)), torch.randint(max(1, n // 3), (n,)), torch.arange(n)])
    mask, other = torch.rand(3, n) > 0.2, torch.rand(3, n) > 0.6
    options = {
        "own": {"bound": 1.0},
        "masked": {"anchor_mask": mask, "key_mask": mask, "bound": 1.0},
        "one side": {"anchor_mask": other & mask, "key_mask": mask, "bound": 1.0},
        "keys": {"key_ids": torch.randint(3, (3, 40)), "self_index": torch.randint(-1, 40, (3, n)), "bound": 1.0},
        "weights": {"key_log_weights": torch.randn(3, n, dtype=dtype), "bound": None},
        "ranges": {"tolerance": 1.0, "bound": 1.0},
        "no bound": {"bound": None},
        "cold": {"bound": 1.0},
    }[kind]
    sides = [torch.randn(3, n, d, dtype=torch.float64).to(dtype).requires_grad_()]
    if kind == "keys":
        sides.append(torch.randn(3, 40, d, dtype=torch.float64).to(dtype).requires_grad_())
        options["keys"] = sides[1]
    sides[0].data[0, 0] = 0  # no direction
    temperature = 0.001 if kind == "cold" else 0.2
    return contrast.pose(sides[0], ids, temperature=temperature, precision=dtype, unit=unit, **options), sides


def from_terms(formula):
    """The same formula as a callable, which no engine has in itself."""

    def plain(terms):
        return formula(terms)

    plain.needs_negatives = formulas.needs_negatives(formula)
    return plain


def loss_and_gradients(given, sides, formula, impl, upstream, **options):
    loss = formulas.loss_of(given, formula, impl, **options)
    return loss, *torch.autograd.grad((loss * upstream.to(loss.dtype)).sum(), sides)


@built
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("kind", ["own", "masked", "one side", "keys", "weights", "ranges", "no bound", "cold"])
@pytest.mark.parametrize("formula", formulas.OF_ENGINES.values(), ids=formulas.OF_ENGINES)
def test_mean_losses_are_those_from_the_terms(formula, kind, average):
    """Every formula that is in the engine, value and gradient, beside the same formula over the reference's terms."""
    for n, dtype, weight in ((5, torch.float64, 1.0), (130, torch.float64, 0.3), (40, torch.float32, 0.3)):
        given, sides = problem(kind, n, 7, dtype)
        assert native.takes(given, formula.__name__)
        upstream = torch.tensor(2.0) if average else torch.tensor([0.5, -2.0, 3.0])
        options = {"average": average, "weight": weight, "upstream": upstream}
        got = loss_and_gradients(given, sides, formula, "native", **options)
        wanted = loss_and_gradients(given, sides, from_terms(formula), "reference", **options)
        wide = dtype == torch.float64
        tolerance = {"rtol": 1e-9, "atol": 1e-10} if wide else {"rtol": 2e-5, "atol": 5e-4 if kind == "cold" else 1e-5}
        torch.testing.assert_close(got, wanted, **tolerance)


@built
def test_mean_losses_of_half_precision_come_in_float32_with_gradients_as_given():
    given, sides = problem("own", 30, 16, torch.bfloat16)
    wide = replace(given, anchors=given.anchors.detach().float().requires_grad_(), precision=torch.float32)
    got = loss_and_gradients(given, sides, formulas.supcon, "native", torch.tensor(1.0))
    wanted = loss_and_gradients(wide, [wide.anchors], formulas.supcon, "native", torch.tensor(1.0))
    assert got[0].dtype == torch.float32
    assert torch.equal(got[0], wanted[0])
    assert torch.equal(got[1], wanted[1].bfloat16())


@built
def test_a_gradient_that_is_not_a_number_stays_with_the_anchors_that_count():
    """Rows of the group without positives keep a gradient of 0, as from the terms."""
    for formula in (formulas.supcon, from_terms(formulas.supcon)):
        given, sides = problem("own", 12, 4)
        _, gradient = loss_and_gradients(
            given, sides, formula, "native", torch.tensor([1.0, 1.0, torch.nan]), average=False
        )
        assert gradient[0].isfinite().all()
        assert not gradient[2].any()
        _, gradient = loss_and_gradients(given, sides, formula, "native", torch.tensor(torch.nan))
        assert gradient[0][1:].isnan().any()
        assert not gradient[2].any()


@built
def test_second_derivatives_of_mean_losses():
    """What "auto" gave to the engine goes to the reference; asked for by name the engine says that it has none."""
    given, sides = problem("own", 6, 3)
    sides[0].data[0, 0] = 1.0  # a zero vector has none
    assert torch.autograd.gradgradcheck(
        lambda z: formulas.loss_of(replace(given, anchors=z), formulas.supcon, "auto"), sides
    )
    given, sides = problem("keys", 6, 3)
    both = lambda z, k: formulas.loss_of(replace(given, anchors=z, keys=k), formulas.mmgl_local, "auto")  # noqa: E731
    sides[0].data[0, 0] = 1.0
    assert torch.autograd.gradgradcheck(both, sides)
    (gradient,) = torch.autograd.grad(formulas.loss_of(given, formulas.supcon, "native"), sides[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives, got impl='native'"):
        gradient.sum().backward()


@built
def test_an_anchor_beside_itself_needs_unit_vectors():
    """The logit of an anchor with itself is a constant of unit vectors alone: of others the formula is not in here."""
    given, _ = problem("own", 6, 3, unit=False)
    assert not native.takes(given, "mmgl_global")
    assert native.takes(given, "supcon")


@built
@pytest.mark.parametrize("kind", ["own", "masked", "one side", "keys", "weights", "ranges", "no bound", "cold"])
@pytest.mark.parametrize("n", [1, 7, 96, 97, 200, 400])
def test_sizes_that_fill_no_tile(n, kind):
    """One tile and less, a point more than one, an odd and an even number of tiles; few and many ids, one group of one id."""
    ids = torch.stack([torch.randint(k, (n,)) for k in (1, 4, max(1, n // 3))])
    mask, other = torch.rand(3, n) > 0.2, torch.rand(3, n) > 0.6
    options = {
        "own": {"bound": 1.0},
        "masked": {"anchor_mask": mask, "key_mask": mask, "bound": 1.0},
        "one side": {"anchor_mask": other, "key_mask": mask, "bound": 1.0},
        "keys": {"key_ids": torch.randint(3, (3, 150)), "self_index": torch.randint(-1, 150, (3, n)), "bound": 1.0},
        "weights": {"key_log_weights": torch.randn(3, n, dtype=torch.float64)},
        "ranges": {"tolerance": 1.0},
        "no bound": {},
        "cold": {"temperature": 0.001},
    }[kind]
    for d in FEATURES:
        z = points(3, n, d)
        given = {**options, "keys": points(3, 150, d)} if kind == "keys" else options
        wanted, got = (results(z, ids, impl, **dict(given)) for impl in ("reference", "native"))
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)


@built
@pytest.mark.parametrize("most", range(native.MOST + 1))
@pytest.mark.parametrize("n", [5, 100, 250])
def test_every_instruction_set_that_is_here(n, most, monkeypatch):
    """Blocks of another size, products rounded once or twice: the same within rounding."""
    ids, mask = torch.randint(4, (2, n)), torch.rand(2, n) > 0.2
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        z = points(2, n, 20, dtype)
        kinds = [{}, {"anchor_mask": mask, "key_mask": mask}, {"key_mask": mask}, {"tolerance": 1.0}]
        kinds += (
            [{"temperature": 0.002}] if dtype == torch.float64 else []
        )  # logits of 500 have no digits left in float32
        for options in kinds:
            monkeypatch.setattr(native, "MOST", most)
            got = results(z, ids, "native", **dict(options))
            torch.testing.assert_close(got, results(z, ids, "reference", **dict(options)), rtol=close, atol=close)


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("uneven", [False, True])
def test_bits_do_not_depend_on_threads(dtype, separate, uneven):
    """Every sum is in the same order whoever takes part in it: more threads than cores, too.

    Threads take whole groups where all get as many of the same size, and share them otherwise.
    """
    z, ids = points(4, 300, 64, dtype), torch.randint(4, (4, 300))
    options = {"keys": points(4, 500, 64, dtype), "key_ids": torch.randint(4, (4, 500))} if separate else {}
    if uneven:
        options["anchor_mask"] = torch.arange(300) < torch.tensor([[300], [40], [0], [200]])
    found = []
    try:
        for threads in (1, 2, 3, 4, 5):
            torch.set_num_threads(threads)
            found += [results(z, ids, "native", bound=1.0, **options) for _ in range(2)]
    finally:
        torch.set_num_threads(1)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0)


@built
@pytest.mark.parametrize(("temperature", "limit"), [(0.07, 1.5e-6), (0.2, 2e-6), (0.0122, 2e-6)])
@pytest.mark.parametrize("pull", [0.0, 3.0])
def test_gradient_error(temperature, limit, pull):
    """Beside float64, at a size that people use, of noise and of classes that are well apart."""
    problem = local.Problem(Case("local", 2, 1600, 64), temperature=temperature, pull=pull)
    value, gradient = errors(local.ours("native")(problem)(), local.exact(problem, "mmgl"))
    assert value <= 1e-6
    assert gradient <= limit


@built
def test_memory_is_linear():
    """Far below one float for each pair, and four times as many points take less than eight times as much."""
    small, large = (in_own_process(Case("local", 1, n, 64), "native") for n in (3136, 12544))
    assert large < 12544**2 * 4 / 2**20 / 16
    assert large < 8 * max(small, 1.0)


@built
def test_after_a_fork():
    z, ids = points(1, 300, 16, torch.float32), torch.randint(3, (1, 300))
    torch.set_num_threads(2)
    try:
        wanted = pair_terms(z, ids, temperature=0.1, impl="native").negative_lse
        child = os.fork()
        if not child:
            got = pair_terms(z, ids, temperature=0.1, impl="native").negative_lse
            os._exit(0 if torch.equal(got, wanted) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(1)


@built
def test_in_several_python_threads():
    problems = [(points(2, n, 32, torch.float32), torch.randint(4, (2, n))) for n in (50, 300, 500, 120)]
    wanted = [results(*problem, "native") for problem in problems]
    found: list = [[] for _ in problems]

    def work(i):
        found[i] = [results(*problems[i], "native") for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(problems))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, one in zip(found, wanted, strict=True):
        for again in got:
            torch.testing.assert_close(again, one, rtol=0, atol=0)


@built
def test_any_layout():
    """Strides, offsets, expanded ids, a negated view: nothing is assumed of tensors."""
    z, ids = points(2, 60, 8), torch.randint(3, (60,))
    wanted = results(z, ids.expand(2, -1).contiguous(), "native")
    wide = torch.randn(2, 8, 60, 2, dtype=torch.float64)
    wide[..., 1] = z.mT
    mirrored = torch.complex(torch.zeros_like(z), -z).conj().imag
    for view in (z.mT.contiguous().mT, wide[..., 1].mT, mirrored):
        assert torch.equal(view, z)
        terms = pair_terms(view, ids.expand(2, -1), temperature=0.1, impl="native")
        for got, one in zip(terms, wanted[:6], strict=True):
            torch.testing.assert_close(got, one, rtol=1e-14, atol=1e-14)


@built
@pytest.mark.parametrize("bound", [None, 1.0])
def test_what_is_not_finite_spreads_and_stops_nobody(bound):
    z, ids = points(2, 120, 8, torch.float32), torch.arange(120).expand(2, -1) % 3
    for value in (torch.nan, torch.inf):
        broken = z.clone()
        broken[0, 5] = value
        terms = pair_terms(broken, ids, temperature=0.1, bound=bound, impl="native")
        assert not terms.positive_lse[0, 5].isfinite()
        assert terms.positive_lse[1].isfinite().all()


@built
def test_a_key_of_its_own_that_is_none_is_an_error():
    """The primitive checks the index where it may read it; the engine does not rely on that."""
    problem = engines_problem(self_index=torch.tensor([[0, 1, 9]]))
    with pytest.raises(IndexError, match="self_index"):
        native.forward(problem)


def engines_problem(**changes):
    from mmgl_losses.contrast.arguments import pose

    z = points(1, 3, 4)
    return pose(z, torch.arange(3)[None], keys=z, key_ids=torch.arange(3)[None], temperature=1.0, bound=1.0,
                precision=torch.float64, **changes)  # fmt: skip


@built
@pytest.mark.parametrize("n", [1, 16, 2000])
def test_auto_takes_it_on_a_cpu(n):
    problem = engines_problem()
    assert engines.engine("auto", problem) is native
    z, ids = points(1, n, 8), torch.arange(n)[None] % 3
    a, b = (pair_logsumexp(z, ids, temperature=0.1, impl=impl) for impl in ("auto", "native"))
    torch.testing.assert_close(tuple(a), tuple(b), rtol=0, atol=0)


def test_auto_has_every_derivative_of_few_points():
    """Second derivatives, forward mode and `torch.func`, whatever engine the value comes from."""
    z = points(1, 12, 3)[0]

    def loss(z):
        return global_contrast(z, temperature=0.5)

    def plain(z):
        return global_contrast(z, temperature=0.5, impl="reference")

    x = z.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(loss, (x,))
    tangent = torch.randn_like(z)
    torch.testing.assert_close(torch.func.jvp(loss, (z,), (tangent,)), torch.func.jvp(plain, (z,), (tangent,)))
    torch.testing.assert_close(torch.func.hessian(loss)(z), torch.func.hessian(plain)(z))
    several = torch.stack([z, z.flip(0), 2 * z + 1])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(several), torch.stack([
        torch.func.grad(plain)(one) for one in several
    ]))  # fmt: skip
    (grad,) = torch.autograd.grad(loss(x), x)  # and without all that, the usual one
    torch.testing.assert_close(grad, torch.func.grad(plain)(z))


def test_many_points_have_one_derivative():
    z = points(1, 400, 4)[0].requires_grad_()
    (grad,) = torch.autograd.grad(global_contrast(z, temperature=0.5), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="impl='reference' for second derivatives"):
        grad.sum().backward()


def test_where_it_was_not_built(monkeypatch, tmp_path):
    """`auto` does without; asked for by name, it says how to get it."""
    native.library.cache_clear()
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "engine.so")
    try:
        x, y = torch.randn(1, 4, 6, 6), torch.randint(2, (1, 6, 6))
        assert local_supcon(x, y).isfinite()
        with pytest.raises(ValueError, match=r"native library for impl='native', got none.*from source with g\+\+"):
            local_supcon(x, y, impl="native")
        native.library.cache_clear()
        (tmp_path / "engine.so").write_text("no library")
        with pytest.raises(ValueError, match="got one that does not load"):
            local_supcon(x, y, impl="native")
    finally:
        native.library.cache_clear()


@built
def test_other_devices_are_refused():
    problem = engines_problem()
    moved = type(problem)(*(x.to("meta") if isinstance(x, torch.Tensor) else x for x in problem.values()))
    assert "got them on meta" in (native.refuses(moved) or "")
    assert not native.suits(moved)
