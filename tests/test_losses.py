"""The modules: weights meet the right levels, zero weights see nothing, diagnostics tell the truth."""

import copy
import math
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from mmgl_losses import DeepSupervisionDice, MultiScaleGlobalContrast, MultiScaleLocalSupCon, halving
from mmgl_losses.functional import global_contrast, local_supcon, soft_dice

LABELS = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(1))
SIZES = (4, 8, 16)


def features(dtype=torch.float32, channels=3):
    return [torch.randn(2, channels, size, size, dtype=dtype) for size in SIZES]


def embeddings():
    return [torch.randn(6, 5) for _ in range(3)]


CASES = {
    "global": (MultiScaleGlobalContrast, embeddings, lambda x, _: global_contrast(x), ()),
    "local": (MultiScaleLocalSupCon, features, local_supcon, (LABELS,)),
    "dice": (DeepSupervisionDice, features, soft_dice, (LABELS,)),
}
every = pytest.mark.parametrize("case", CASES)


@every
def test_is_the_weighted_sum(case):
    make, inputs, single, rest = CASES[case]
    x, weights = inputs(), (0.1, 0.3, 0.7)
    expected = sum(w * single(level, *(rest or (None,))) for w, level in zip(weights, x, strict=True))
    torch.testing.assert_close(make(weights=weights)(x, *rest), expected)
    named = dict(zip("abc", x, strict=True))
    torch.testing.assert_close(make(weights=weights)(named, *rest), expected)
    backwards = {"c": 0.7, "b": 0.3, "a": 0.1}
    torch.testing.assert_close(make(weights=backwards)(named, *rest), expected)


@every
def test_weight_zero_skips_the_level(case):
    make, inputs, single, rest = CASES[case]
    x = inputs()
    x[0] = torch.full_like(x[0], math.nan).requires_grad_()
    loss = make(weights=(0.0, 0.0, 1.0))(x, *rest)
    torch.testing.assert_close(loss, single(x[2], *(rest or (None,))))


@every
def test_has_no_state_and_travels(case):
    make, inputs, _, rest = CASES[case]
    loss, x = make(weights=(0.5, 0.25, 0.25)), inputs()
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(x, *rest), loss(x, *rest))
    assert "weights=(0.5, 0.25, 0.25)" in repr(loss)


@every
def test_compiles_whole(case):
    make, inputs, _, rest = CASES[case]
    loss, x = make(), inputs()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, *rest), loss(x, *rest))


@pytest.mark.parametrize("case", ["local", "dice"])
def test_levels_of_one_size_need_named_weights(case):
    """MONAI's outputs, all at full size: their order cannot be seen."""
    make, _, _, rest = CASES[case]
    same = [torch.randn(2, 3, 8, 8) for _ in range(3)]
    with pytest.raises(ValueError, match="Give `weights` as a mapping"):
        make()(same, *rest)
    stacked = torch.stack(same, 1)
    with pytest.raises(TypeError, match=r"a tensor of shape \(2, 3, 3, 8, 8\).*unbind"):
        make()(stacked, *rest)
    named = dict(zip("abc", stacked.unbind(1), strict=True))
    assert make(weights={"a": 0.2, "b": 0.3, "c": 0.5})(named, *rest).isfinite()


def test_deep_supervision_agrees_with_monai():
    """Equal weights and the same labels at each level; MONAI resizes them by nearest-exact."""
    from monai.losses import DeepSupervisionLoss, DiceLoss

    x = features()
    peer = DeepSupervisionLoss(
        DiceLoss(to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5), weights=[0.5, 0.3, 0.2]
    )
    got = DeepSupervisionDice(weights=(0.2, 0.3, 0.5))(x, LABELS)
    torch.testing.assert_close(got, peer(x[::-1], LABELS[:, None].float()))


def test_momentum_keys_at_each_level():
    x, keys = embeddings(), [torch.randn(9, 5) for _ in range(3)]
    ids = torch.arange(9)
    loss = MultiScaleGlobalContrast(weights=(0.0, 0.5, 0.5))
    got = loss(x, ids[:6], keys=keys, key_instances=ids)
    expected = sum(
        0.5 * global_contrast(a, ids[:6], keys=b, key_instances=ids) for a, b in zip(x[1:], keys[1:], strict=True)
    )
    torch.testing.assert_close(got, expected)


# Diagnostics -----------------------------------------------------------------------------------------------------


def perfect_and_collapsed():
    """Features that separate three classes as far as three vectors can be, and features that are all equal."""
    angle = 2 * math.pi * LABELS / 3
    perfect = torch.stack([angle.cos(), angle.sin()], 1)
    return perfect, torch.ones_like(perfect)


def test_diagnostics_of_local_features():
    loss = MultiScaleLocalSupCon(weights=(1.0,))
    perfect, collapsed = perfect_and_collapsed()
    done, chance = loss.diagnose([perfect], LABELS), loss.diagnose([collapsed], LABELS)
    level = done.levels[0]
    assert level.loss == pytest.approx(loss([perfect], LABELS).item(), rel=1e-5)
    assert level.valid == {k: int((k == LABELS).sum()) for k in range(3)}
    per_image = [[int((y == k).sum()) for k in range(3)] for y in LABELS]
    assert level.positives == pytest.approx(sum(c * (c - 1) for image in per_image for c in image) / LABELS.numel())
    assert done.progress > 0.95
    assert "Done" in str(done)
    assert chance.progress == pytest.approx(0, abs=1e-5)
    assert chance.levels[0].chance == pytest.approx(chance.levels[0].loss, rel=1e-5)
    assert "no better than chance" in str(chance)
    backwards = loss.diagnose([torch.randn(2, 2, 16, 16)], LABELS)
    assert backwards.levels[0].above_floor > done.levels[0].above_floor


def test_progress_is_weighted():
    """One level done, one at chance: the progress is the share of the weight of the first."""
    perfect, collapsed = perfect_and_collapsed()
    loss = MultiScaleLocalSupCon(weights={"done": 0.8, "chance": 0.2})
    assert loss.diagnose({"done": perfect, "chance": collapsed}, LABELS).progress == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize(
    ("make", "shape", "rest"),
    [
        (MultiScaleGlobalContrast, (4, 8), ()),
        (MultiScaleLocalSupCon, (2, 3, 16, 16), (LABELS,)),
        (DeepSupervisionDice, (2, 3, 16, 16), (LABELS,)),
    ],
)
def test_diagnostics_hold_the_weight_and_the_loss_of_each_level(make, shape, rest):
    weights, levels = {"a": 0.3, "b": 0.7}, {"a": torch.randn(shape), "b": torch.randn(shape)}
    result = make(weights=weights).diagnose(levels, *rest)
    assert [level.weight for level in result.levels] == [0.3, 0.7]
    for key, level in zip("ab", result.levels, strict=True):
        assert level.loss == pytest.approx(make(weights={key: 1.0})({key: levels[key]}, *rest).item(), rel=1e-5)


def test_diagnostics_of_nothing():
    loss = MultiScaleLocalSupCon(weights=(1.0,), ignore_index=7)
    result = loss.diagnose([torch.randn(2, 3, 4, 4)], torch.full((2, 4, 4), 7))
    assert result.levels[0].valid == {}
    assert "Nothing to learn from" in result.sentence


@pytest.mark.parametrize("formula", ["nt_xent", "decoupled", "mmgl"])
def test_diagnostics_of_embeddings(formula):
    loss = MultiScaleGlobalContrast(weights=(1.0,), formula=formula)
    collapsed = loss.diagnose([torch.ones(8, 4)])
    assert collapsed.levels[0].valid == {-1: 8}
    assert collapsed.levels[0].positives == 1
    assert collapsed.progress == pytest.approx(0, abs=1e-5)
    apart = loss.diagnose([torch.tensor([[1.0, 0], [-1.0, 0]]).repeat(2, 1)])
    assert apart.levels[0].loss == pytest.approx(apart.levels[0].floor, abs=1e-5)
    assert apart.progress > 0.95


def test_the_columns_of_a_report_stay_below_their_heads():
    """Names of modules are long."""
    name = "model.1.submodule.1.submodule.1.submodule"
    loss = MultiScaleGlobalContrast(weights={"up": 0.5, name: 0.5})
    rows = str(loss.diagnose({"up": torch.randn(4, 8), name: torch.randn(4, 8)})).splitlines()[:3]
    assert len({len(row) for row in rows}) == 1
    assert name in rows[2]


def test_diagnostics_of_dice():
    loss = DeepSupervisionDice(weights=(1.0,))
    sure = 50.0 * F.one_hot(LABELS, 3).movedim(-1, 1).float()
    result = loss.diagnose([sure], LABELS)
    assert result.levels[0].classes == pytest.approx({0: 0, 1: 0, 2: 0}, abs=1e-6)
    assert result.progress > 0.95
    logits = torch.randn(2, 3, 16, 16)
    classes = loss.diagnose([logits], LABELS).levels[0].classes
    assert sum(classes.values()) / 3 == pytest.approx(soft_dice(logits, LABELS).item(), rel=1e-5)
    regions = DeepSupervisionDice(weights=(1.0,), regions=((1, 2), 2), class_weights=(1, 3), cross_entropy=0.5)
    level = regions.diagnose([logits[:, 1:]], LABELS).levels[0]
    assert level.valid == {0: int((LABELS > 0).sum()), 1: int((LABELS == 2).sum())}
    for i, region in enumerate(((1, 2), 2)):
        alone = soft_dice(logits[:, [i + 1]], torch.where(LABELS == 2, 2, LABELS * (i == 0)), regions=(region,))
        assert level.classes[i] == pytest.approx(alone.item(), rel=1e-5)
    assert level.loss == pytest.approx(regions([logits[:, 1:]], LABELS).item(), rel=1e-5)


def test_formula_that_cannot_be_hashed():
    """A callable with parameters is naturally a dataclass, which has equality and so no hash."""

    @dataclass
    class Margin:
        margin: float

        def __call__(self, terms):
            return terms.negative_lse - terms.positive_sum / terms.n_positives + self.margin

    levels = [torch.randn(8, 4)]
    for formula, more in (("decoupled", 0.0), (Margin(0.5), 0.5)):
        loss = MultiScaleGlobalContrast(weights=(1.0,), formula=formula)
        torch.testing.assert_close(
            loss(levels) - more, MultiScaleGlobalContrast(weights=(1.0,), formula="decoupled")(levels)
        )
        assert loss.diagnose(levels)


@pytest.mark.parametrize("levels", [1, 2, 3, 5])
def test_halving_is_nnu_nets_schedule(levels):
    """nnU-Net: 1 / 2^i from fine to coarse, the last one 0, divided by their sum."""
    weights = [1 / 2**i for i in range(levels)]
    assert halving(levels) == pytest.approx([w / sum(weights) for w in weights[::-1]])
    weights[-1] = 0
    if levels > 1:
        assert halving(levels, coarsest=False) == pytest.approx([w / sum(weights) for w in weights[::-1]])
    assert DeepSupervisionDice(weights=halving(levels)).weights == halving(levels)
