"""Every derivative is right, or refused with the engine that has it: never a silent zero."""

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon
from mmgl_losses.contrast import pair_logsumexp, pair_terms
from mmgl_losses.functional import global_contrast, local_supcon, soft_dice
from tests import oracles

func = torch.func
TAU = 0.3
LABELS = torch.tensor([[0, 1, 1, 2, 0, 2], [1, 1, 0, 0, 2, 3]])
INSTANCES = torch.tensor([0, 1, 2, 0, 1, 2])
LISTED, IMAGES = LABELS.tolist(), INSTANCES.tolist()  # torch 2.8 cannot list a tensor inside of `torch.func`
MOVED = torch.tensor([0, 1, 3, 0, 2, 5])


def unit(x):
    return torch.nn.functional.normalize(x, dim=-1)


def local_oracle(formula):
    def loss(x):
        images = [(unit(z.T), y) for z, y in zip(x, LISTED, strict=True)]
        return sum(oracles.contrastive_loss(formula, z, y, temperature=TAU) for z, y in images) / 2

    return loss


def global_oracle(formula):
    return lambda x: oracles.contrastive_loss(formula, unit(x), IMAGES, temperature=TAU)


def dice_oracle(x):
    return oracles.soft_dice(x, LABELS)


def primitive_oracle(x):
    """With every option: a tolerance, masks, weights and separate keys, some of which are the anchors."""
    positives, negatives, *_, total = oracles.pair_logsumexp(x, INSTANCES, temperature=TAU, **options(x))
    return mixed(positives, negatives, total)


def options(x):
    return {
        "keys": 0.5 * x.flip(0),
        "key_ids": MOVED,
        "self_index": torch.tensor([5, 4, -1, 2, 1, 0]),
        "anchor_mask": torch.tensor([True, True, False, True, True, True]),
        "key_mask": torch.tensor([True, False, True, True, True, True]),
        "key_log_weights": torch.tensor([0.3, 0.0, -0.2, 0.1, 0.0, 0.4], dtype=torch.float64),
        "tolerance": 1.0,
    }


def mixed(positives, negatives, total):
    kept = (torch.where(x.isfinite(), x, 0.0) for x in (positives, negatives))
    return sum(x.sum() * f for x, f in zip((*kept, total), (1.0, -0.6, 0.3), strict=True))


def primitive(x, impl):
    terms = pair_terms(x, INSTANCES, temperature=TAU, impl=impl, bound=9.0, **options(x))
    return mixed(terms.positive_lse, terms.negative_lse, terms.positive_sum)


MAPS, ROWS = (2, 3, 6), (6, 4)
# What is differentiated, its oracle, and the shape of its input.
CONTRASTS = {
    **{
        f"local {name}": (lambda x, impl, name=name: local_supcon(x, LABELS, temperature=TAU, formula=name, impl=impl),
                          local_oracle(oracle), MAPS)
        for name, oracle in (("supcon", "supcon"), ("supcon_in", "supcon_in"), ("mmgl", "mmgl_local"))
    },
    **{
        f"global {name}": (lambda x, impl, name=name: global_contrast(x, INSTANCES, temperature=TAU, formula=name, impl=impl),
                           global_oracle(oracle), ROWS)
        for name, oracle in (("nt_xent", "nt_xent"), ("decoupled", "decoupled"), ("mmgl", "mmgl_global"))
    },
    "module": (lambda x, impl: MultiScaleGlobalContrast(temperature=TAU, weights=(0.25, 0.75), impl=impl)([x, x], INSTANCES),
               global_oracle("nt_xent"), ROWS),
    "primitive": (primitive, primitive_oracle, ROWS),
}  # fmt: skip
REFERENCE = ["auto", "reference"]  # small problems go to the reference of themselves
CASES = [(name, impl) for name in CONTRASTS for impl in REFERENCE] + [("dice", "")]


def case(name, impl):
    if name == "dice":
        return lambda x: soft_dice(x, LABELS), dice_oracle, torch.randn(2, 4, 6, dtype=torch.float64)
    loss, oracle, shape = CONTRASTS[name]
    return lambda x: loss(x, impl), oracle, torch.randn(shape, dtype=torch.float64)


def hessian(loss, x):
    """Rows of second derivatives by autograd alone."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    assert gradient.requires_grad
    rows = [torch.autograd.grad(g, x, retain_graph=True)[0] for g in gradient.flatten()]
    return torch.stack(rows)


@pytest.mark.parametrize(("name", "impl"), CASES)
def test_second_derivatives(name, impl):
    loss, oracle, x = case(name, impl)
    wanted = hessian(oracle, x)
    torch.testing.assert_close(hessian(loss, x), wanted)
    for transform in (func.hessian, lambda f: func.jacrev(func.jacrev(f)), lambda f: func.jacfwd(func.jacfwd(f))):
        torch.testing.assert_close(transform(loss)(x).reshape(wanted.shape), wanted)


@pytest.mark.parametrize(("name", "impl"), CASES)
def test_third_derivatives_along_a_line(name, impl):
    loss, oracle, x = case(name, impl)
    line = torch.linspace(-0.5, 0.5, x.numel(), dtype=torch.float64).view_as(x)
    third = [func.grad(func.grad(func.grad(lambda t, f=f: f(x + t * line)))) for f in (loss, oracle)]
    t = torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(third[0](t), third[1](t), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "impl"), CASES)
def test_forward_mode(name, impl):
    loss, oracle, x = case(name, impl)
    direction = torch.randn_like(x)
    slope = (torch.autograd.grad(oracle(x.requires_grad_()), x)[0] * direction).sum()
    torch.testing.assert_close(func.jvp(loss, (x.detach(),), (direction,))[1], slope)
    with forward_ad.dual_level():
        value = loss(forward_ad.make_dual(x.detach(), direction))
        torch.testing.assert_close(forward_ad.unpack_dual(value).tangent, slope)


@pytest.mark.parametrize(("name", "impl"), [*CASES, *((name, "tiled") for name in CONTRASTS)])
def test_vmap_and_the_gradient_of_torch_func(name, impl):
    """Every engine has these: a mapped axis is more groups."""
    loss, oracle, x = case(name, impl)
    several = torch.stack([x, x.flip(0), 0.5 * x + 0.1])
    torch.testing.assert_close(func.vmap(loss)(several), torch.stack([oracle(z) for z in several]))
    wanted = torch.stack([func.grad(oracle)(z) for z in several])
    torch.testing.assert_close(func.vmap(func.grad(loss))(several), wanted)
    torch.testing.assert_close(func.vmap(loss, in_dims=1)(several.movedim(0, 1)), func.vmap(loss)(several))
    parts = torch.stack([func.grad(loss)(z) for z in several])
    torch.testing.assert_close(parts, wanted)


@pytest.mark.parametrize("name", CONTRASTS)
def test_an_engine_without_a_derivative_says_which_has_it(name):
    loss, _, x = case(name, "tiled")
    said = r"Expected impl='reference' for {}, got impl='tiled'. It forms all pairs"
    with pytest.raises(NotImplementedError, match=said.format("second derivatives")):
        hessian(loss, x)
    with pytest.raises(NotImplementedError, match=said.format("second derivatives")):
        func.grad(lambda x: func.grad(loss)(x).sum())(x)
    for mode in (
        lambda: func.jvp(loss, (x,), (x,)),
        lambda: func.hessian(loss)(x),
        lambda: func.jacfwd(loss)(x),
    ):
        with pytest.raises(NotImplementedError, match=said.format("forward-mode derivatives")):
            mode()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward-mode"):
        loss(forward_ad.make_dual(x, x))


def test_a_large_problem_of_auto_says_so_too():
    x = torch.randn(400, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(global_contrast(x), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="the engine that impl='auto' chose"):
        gradient.sum().backward()
    reference = global_contrast(x, impl="reference")
    (gradient,) = torch.autograd.grad(reference, x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad.isfinite().all()


def test_a_gradient_penalty_trains():
    """What second derivatives are for: one step on the length of the gradient lowers it."""
    net = torch.nn.Linear(5, 4).double()
    x = torch.randn(6, 5, dtype=torch.float64)

    def penalty():
        z = net(x)
        (gradient,) = torch.autograd.grad(global_contrast(z, INSTANCES, temperature=1.0), z, create_graph=True)
        return gradient.square().sum()

    before = penalty()
    before.backward()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter -= 0.05 * parameter.grad
    assert penalty() < before


@pytest.mark.parametrize("impl", REFERENCE)
def test_second_derivatives_by_the_temperature(impl):
    x = unit(torch.randn(6, 3, dtype=torch.float64))

    def loss(tau, f):
        return f(x, INSTANCES, temperature=tau)

    ours = lambda tau: loss(tau, lambda *a, **o: pair_logsumexp(*a, **o, impl=impl).negatives.sum())  # noqa: E731
    oracle = lambda tau: loss(tau, lambda *a, **o: oracles.pair_logsumexp(*a, **o)[1].sum())  # noqa: E731
    tau = torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(func.grad(func.grad(ours))(tau), func.grad(func.grad(oracle))(tau))


@pytest.mark.parametrize("mode", ["second", "forward"])
def test_anchors_without_pairs_have_none_and_leak_nothing(mode):
    """One class and single points of others: log-sum-exps of nothing stand beside those of something."""
    labels = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]])
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    loss = lambda x: local_supcon(x, labels, temperature=TAU, formula="mmgl")  # noqa: E731
    if mode == "second":
        assert hessian(loss, x).isfinite().all()
    else:
        assert func.jvp(loss, (x,), (x.flip(0),))[1].isfinite()


@pytest.mark.parametrize("make", [MultiScaleLocalSupCon, DeepSupervisionDice])
def test_modules_of_maps(make):
    """Levels on top of one another: the module's derivatives are the weighted sums of those of its parts."""
    loss = make(weights=(0.25, 0.75))
    coarse, fine = torch.randn(1, 4, 4, dtype=torch.float64), torch.randn(1, 4, 8, dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1, 1, 2, 2, 1, 0]])
    single = make(weights=(1.0,))
    wanted = 0.25 * hessian(lambda x: single([x], labels), coarse)
    torch.testing.assert_close(hessian(lambda x: loss([x, fine], labels), coarse), wanted)
