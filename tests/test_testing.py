"""The conformance kit: what is ours passes it, and for every law there is something that breaks it by name."""

import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from mmgl_losses import (
    DeepSupervisionDice,
    GlobalHead,
    LocalHead,
    MultiScaleGlobalContrast,
    MultiScaleLocalSupCon,
    SegmentationHead,
)
from mmgl_losses.losses.formulas import GLOBAL_FORMULAS, LOCAL_FORMULAS, supcon
from mmgl_losses.testing import ConformanceError, check_formula, check_head, check_loss
from mmgl_losses.testing.formulas import LAWS as FORMULA_LAWS
from mmgl_losses.testing.heads import LAWS as HEAD_LAWS
from mmgl_losses.testing.losses import LAWS as LOSS_LAWS

KINDS = {"global": MultiScaleGlobalContrast, "local": MultiScaleLocalSupCon, "segmentation": DeepSupervisionDice}


# What is ours


@pytest.mark.parametrize("kind", KINDS)
def test_our_losses_keep_every_law(kind):
    checked = check_loss(KINDS[kind], kind=kind, levels=2)
    excluded = {
        "global": {"compile", "one class", "everything ignored", "ignored points", "order of points"},
        "local": {"compile"},
        "segmentation": {"compile", "no positives"},
    }
    assert set(checked) == set(LOSS_LAWS) - excluded[kind]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("global", {"formula": "mmgl"}),
        ("global", {"temperature": 0.5, "formula": "decoupled"}),
        ("local", {"formula": "mmgl", "background": "key"}),
        ("local", {"formula": "supcon_in", "pairs": "batch", "background": "ignore"}),
        ("segmentation", {"cross_entropy": 0.5, "include_background": False}),
        ("segmentation", {"squared": True, "batch": False}),
        ("segmentation", {"class_weights": (1.0, 1.0, 1.0)}),
    ],
)
def test_their_options(kind, options):
    check_loss(partial(KINDS[kind], **options), kind=kind, spatial_dims=(1, 3), levels=2)


def test_what_options_mean_to_break():
    """Two augmentations make no batch of one; ties between points are broken by their order."""
    loss = partial(MultiScaleLocalSupCon, pairs="augmentations", stride=2, sampling="foreground")
    with pytest.raises(ConformanceError) as caught:
        check_loss(loss, kind="local", spatial_dims=(2,))
    laws = {failure.law for failure in caught.value.failures}
    assert laws == {"one image", "order of points"}
    assert not laws & set(check_loss(loss, kind="local", spatial_dims=(2,), skip=laws))


@pytest.mark.parametrize(
    "head",
    [
        GlobalHead,
        LocalHead,
        partial(SegmentationHead, out_channels=3),
        partial(LocalHead, stride=1, norm=nn.BatchNorm1d, activation=nn.ReLU),
    ],
)
def test_our_heads_keep_every_law(head):
    assert set(check_head(head)) == set(HEAD_LAWS) - {"compile"}


def test_one_head_compiled():
    assert "compile" in check_head(GlobalHead, compile=True, spatial_dims=(2,))


@pytest.mark.parametrize("formula", {**GLOBAL_FORMULAS, **LOCAL_FORMULAS}.values(), ids=lambda f: f.__name__)
def test_our_formulas_keep_every_law(formula):
    check_formula(formula, compile=formula is supcon)


# What is broken, one law each


def as_list(levels):
    return list(levels.values()) if isinstance(levels, dict) else levels


class Local(MultiScaleLocalSupCon):
    """A loss that is sound, but for what `extra` makes of its value, its finest level and the labels."""

    def forward(self, features, labels):
        return self.extra(super().forward(features, labels), as_list(features)[-1], labels)

    def extra(self, value, finest, labels):
        return value


class Vector(Local):
    def extra(self, value, finest, labels):
        return value.expand(2)


class Infinite(Local):
    def extra(self, value, finest, labels):
        return value * torch.inf


class Detached(Local):
    def extra(self, value, finest, labels):
        return value.detach()


class LastLevel(Local):
    def forward(self, features, labels):
        levels = as_list(features)
        return super().forward([*(level.detach() for level in levels[:-1]), levels[-1]], labels)


class DoubleGradient(Local):
    def extra(self, value, finest, labels):
        return 2 * value - value.detach()


class NoPositives(Local):
    """Divides by the number of points that have another of their label."""

    def extra(self, value, finest, labels):
        return value + 0 / (labels.unique(return_counts=True)[1].max() - 1)


class OneClass(Local):
    """A plain zero where there is nothing to compare, as code in the wild has it."""

    def extra(self, value, finest, labels):
        return value if (labels != labels.flatten()[0]).any() else torch.tensor(0.0)


class Squeezed(DeepSupervisionDice):
    """`squeeze()` drops the batch axis of one image."""

    def forward(self, logits, labels):
        return super().forward([level.squeeze() for level in as_list(logits)], labels.squeeze())


class AllIgnored(Local):
    def extra(self, value, finest, labels):
        kept = (labels != (-1 if self.options.ignore_index is None else self.options.ignore_index)).sum()
        return value * kept / kept


class LooksUnderIgnored(Local):
    def extra(self, value, finest, labels):
        return value + finest.square().mean()


class FirstImage(Local):
    def extra(self, value, finest, labels):
        return value + finest[0].sin().mean()


class FirstRow(Local):
    def extra(self, value, finest, labels):
        return value + finest[:, :, -1].square().mean()


class ListsOnly(Local):
    def forward(self, features, labels):
        return super().forward([features[i] for i in range(len(features))], labels)


class Leaky(nn.Module):
    """The weighted sum that everybody writes first; and `zip` drops levels in silence."""

    def __init__(self, *, weights):
        super().__init__()
        self.weights = weights

    def forward(self, features, labels):
        own = MultiScaleLocalSupCon(weights=(1.0,))
        return sum(
            weight * own([level], labels) for weight, level in zip(self.weights, as_list(features), strict=False)
        )


class Queue(Local):
    def __init__(self, **options):
        super().__init__(**options)
        self.register_buffer("queue", torch.zeros(8))


class NoCopy(Local):
    def __deepcopy__(self, memo):
        return Infinite(weights=self.weights)


class Unpicklable(Local):
    def __init__(self, **options):
        super().__init__(**options)
        self.extra = lambda value, finest, labels: value


class Rounded(Local):
    """Rounds where it was given float32: no other type gives its number."""

    def extra(self, value, finest, labels):
        return value if finest.dtype == torch.float64 else value * 1.001


class HalfOverflows(Local):
    """exp(1 / 0.07) is 1.6 million; float16 ends at 65504."""

    def extra(self, value, finest, labels):
        return value + 1e-6 * (0 * finest.amax() + 14.3).exp()


class AutocastOverflows(Local):
    def extra(self, value, finest, labels):
        z = nn.functional.normalize(finest.float(), dim=1).flatten(2)
        return value + 1e-6 * (z.mT @ z / 0.07).exp().amax()


class Viewed(Local):
    def extra(self, value, finest, labels):
        return value + 0 * finest.view(len(finest), -1)[0, 0]


class Overwrites(Local):
    def forward(self, features, labels):
        levels = as_list(features)
        value = super().forward([1.0 * level for level in levels], labels)  # of copies: the gradient stays right
        with torch.no_grad():
            levels[0].mul_(2)
        return value


class Emptied(Local):
    def forward(self, features, labels):
        levels = as_list(features)
        value = super().forward(levels, labels)
        if isinstance(levels, list):
            levels.pop()
        return value


class Draws(Local):
    """Uses the global generator, for nothing."""

    def extra(self, value, finest, labels):
        torch.rand(1)
        return value


class Counts(Local):
    """Every call is worth more than the last one."""

    def extra(self, value, finest, labels):
        self.calls = getattr(self, "calls", 0) + 1
        return value * (1 + 2e-6 * self.calls)


class Spread(nn.Module):
    """The least that compiles."""

    def forward(self, features, labels):
        return as_list(features)[0].square().mean()


class Branches(Spread):
    def forward(self, features, labels):
        value = super().forward(features, labels)
        return value if value > 0 else 2 * value


LOSSES = [
    ("scalar", Vector, "Expected one floating-point number of ordinary input, got torch.float32 of shape (2,)."),
    ("finite", Infinite, "Expected a finite value of ordinary input, got the value inf."),
    ("gradient", Detached, "got a value without a graph."),
    ("gradient", LastLevel, "got no gradient at level 0."),
    ("slope", DoubleGradient, "Expected the gradient to be the slope of the value, got "),
    ("no positives", NoPositives, "where no anchor has a positive, got the value nan."),
    ("one class", OneClass, "where all labels are the same, got tensor(0.) without a graph."),
    ("one image", Squeezed, "of a batch of one image, got "),
    ("everything ignored", AllIgnored, "where every label is `ignore_index`, got the value nan."),
    ("ignored points", LooksUnderIgnored, "what lies under `ignore_index`, got "),
    ("order of images", FirstImage, "the same value whatever the order of the images, got "),
    ("order of points", FirstRow, "the same value with the spatial axes in another order, got "),
    ("mapping", ListsOnly, "the levels as a mapping to count as the levels as a list, got KeyError: 0."),
    ("weight zero", Leaky, "a level of weight 0 to be left out, NaN or not, got the value nan."),
    ("number of levels", Leaky, "an error where there are fewer levels than weights, got the value "),
    ("state", Queue, "Expected an empty state_dict but for what `state=` names, got 'queue'."),
    ("deepcopy", NoCopy, "a deep copy to give the same value, got "),
    ("pickle", Unpicklable, "a pickled and restored loss to give the same value, got "),
    ("float64", Rounded, "the value of float64 input to be that of float32, to 1e-4, got "),
    ("half precision", HalfOverflows, "(torch.float16)."),
    ("autocast", AutocastOverflows, "the value under autocast to be that without, to 1 %, got inf instead of "),
    ("strides", Viewed, "the same value whatever the order of memory, got RuntimeError: view size"),
    ("arguments", Overwrites, "Expected its arguments to be left as they are, got other numbers in argument 0."),
    ("arguments", Emptied, "got another list of levels."),
    ("random state", Draws, "the global random state to be left as it is, got another state."),
    ("repeatable", Counts, "the same value of the same input a second time, got "),
    ("compile", Branches, "torch.compile(fullgraph=True) to give the same value and gradient, got "),
]
# Where a fault breaks more than one law, the others.
ALSO = {
    OneClass: {"everything ignored"},  # which is one class too
    FirstImage: {"ignored points"},
    FirstRow: {"ignored points"},
    Viewed: {"order of points"},
    Emptied: {"slope", "half precision"},
    Leaky: {"weight zero", "number of levels"},
}


def test_what_compiles_passes():
    assert "compile" in check_loss(Spread, kind="local", spatial_dims=(2,), levels=1, compile=True)


def broken(check, *args, **options) -> dict[str, str]:
    """Law -> sentence."""
    with pytest.raises(ConformanceError) as caught:
        check(*args, **options)
    message = str(caught.value)
    assert message.startswith(f"{args[0].__name__} breaks {len({f.law for f in caught.value.failures})} of the laws")
    assert all(f"- {failure.law}" in message and failure.sentence in message for failure in caught.value.failures)
    return {failure.law: failure.sentence for failure in caught.value.failures}


@pytest.mark.parametrize(("law", "loss", "words"), LOSSES, ids=lambda value: getattr(value, "__name__", None))
def test_broken_losses_fail_by_name(law, loss, words):
    kind = "segmentation" if loss is Squeezed else "local"
    options = {"compile": True, "levels": 1} if law == "compile" else {"levels": 2}
    found = broken(check_loss, loss, kind=kind, spatial_dims=(2,), **options)
    assert found[law].startswith(f"{law} (2-D): Expected ")
    assert words in found[law]
    assert set(found) <= {law} | ALSO.get(loss, set())


class Plain(nn.Module):
    """Correct, and all that the others need to change one thing."""

    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(channels, 5)

    def forward(self, x):
        return self.linear(x.flatten(2).mean(2))


class Summed(Plain):
    def forward(self, x):
        return super().forward(x).sum(0)


class NotFinite(Plain):
    def forward(self, x):
        return super().forward(x).log()


class Unused(Plain):
    def __init__(self, channels):
        super().__init__(channels)
        self.forgotten = nn.Linear(3, 3)


class Centred(Plain):
    """Sees the other images of the batch."""

    def forward(self, x):
        z = super().forward(x)
        return z - z.mean(0)


class SqueezedHead(Plain):
    def forward(self, x):
        return super().forward(x).squeeze()


class HiddenState(Plain):
    def __init__(self, channels):
        super().__init__(channels)
        self.scale = torch.rand(1)

    def forward(self, x):
        return super().forward(x) * self.scale.to(x.dtype)


class SharesMemory(Plain):
    def __deepcopy__(self, memo):
        other = type(self)(self.linear.in_features)
        other.linear = self.linear
        other.training = self.training
        return other


class UnpicklableHead(Plain):
    def __init__(self, channels):
        super().__init__(channels)
        self.act = lambda z: z


class FloatOnly(Plain):
    def forward(self, x):
        return super().forward(x).float()


class NoHalf(Plain):
    def forward(self, x):
        return super().forward(x) * (2 if x.dtype == torch.bfloat16 else 1)


class AutocastHead(Plain):
    def forward(self, x):
        return super().forward(x) * (2 if torch.is_autocast_enabled("cpu") else 1)


class ViewedHead(Plain):
    def forward(self, x):
        return super().forward(x.view(len(x), x.shape[1], -1))


class InPlace(Plain):
    def forward(self, x):
        z = super().forward(x)
        x.data.relu_()
        return z


class AlwaysDrops(Plain):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, training=True))


class CountingHead(Plain):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return super().forward(x) * (1 + 2e-6 * self.calls)


class BranchingHead(Plain):
    def forward(self, x):
        z = super().forward(x)
        return z if z.abs().max() > -1 else z + 1


def no_module(channels):
    return lambda x: x


HEADS = [
    ("module", no_module, "Expected a torch.nn.Module from the number of channels, got function.", set()),
    ("shape", Summed, "got torch.float32 of shape (5,) of features (4, 16, 7, 10).", set()),
    ("shape", NotFinite, "numbers that are not finite.", set()),
    ("gradient", Unused, "got none for forgotten.weight.", set()),
    ("images apart", Centred, "each image's output to depend on that image alone", set()),
    ("images apart", SqueezedHead, "got the shape (5,) of one image.", set()),
    ("state_dict", HiddenState, "a new head with the state_dict of another to be that head, got ", set()),
    ("deepcopy", SharesMemory, "got shared parameters.", None),
    ("pickle", UnpicklableHead, "a pickled and restored head to give the same output, got ", set()),
    ("float64", FloatOnly, "got torch.float32 of float64.", set()),
    ("bfloat16", NoHalf, "the head in bfloat16 to give the output of float32, to 10 %, got ", set()),
    ("autocast", AutocastHead, "the output under autocast to be that without, to 10 %, got ", set()),
    ("strides", ViewedHead, "got RuntimeError: view size", set()),
    ("arguments", InPlace, "got other numbers in the feature.", {"gradient"}),
    ("random state", AlwaysDrops, "left as it is in evaluation, got another state.", None),
    ("repeatable", CountingHead, "a second time in evaluation, got ", set()),
    ("compile", BranchingHead, "torch.compile(fullgraph=True) to give the same output, got ", set()),
]


def test_the_plain_head_is_sound():
    check_head(Plain)


@pytest.mark.parametrize(("law", "head", "words", "also"), HEADS, ids=lambda value: getattr(value, "__name__", None))
def test_broken_heads_fail_by_name(law, head, words, also):
    found = broken(check_head, head, spatial_dims=(2,), compile=law == "compile")
    assert found[law].startswith(f"{law} (2-D): Expected ")
    assert words in found[law]
    assert also is None or set(found) <= {law} | also


def mean_over_anchors(terms):
    return supcon(terms).mean()


def plain_ratio(terms):
    return -(terms.positive_lse.exp() / (terms.positive_lse.exp() + terms.negative_lse.exp())).log()


def unguarded(terms):
    return supcon(terms) + 0 * terms.positive_sum.abs().sqrt()


def divides_by_sum(terms):
    return supcon(terms) + 0 / terms.self_logit


def centred(terms):
    losses = supcon(terms)
    return losses + 0.1 * losses.mean(-1, keepdim=True)


def pushes_positives(terms):
    return -supcon(terms)


def forgets_negatives(terms):
    return -terms.positive_sum / terms.n_positives


def infinite(terms):
    return supcon(terms) / (terms.n_positives - 3)


def claims_too_much(terms):
    return terms.negative_lse - terms.positive_lse


claims_too_much.needs_negatives = False


def narrow(terms):
    return supcon(terms).float()


def overwrites(terms):
    terms.n_positives.clamp_(max=1)
    return supcon(terms)


def drawn(terms):
    return supcon(terms) * (1 + 1e-3 * torch.rand(terms.self_logit.shape, dtype=terms.self_logit.dtype))


def branches(terms):
    return supcon(terms) if terms.self_logit.max() > 0 else terms.self_logit


FORMULAS = [
    ("shape", mean_over_anchors, "got torch.float32 of shape () of terms (2, 12).", set()),
    ("finite", infinite, "got losses with 24 numbers that are not finite.", set()),
    ("anchors apart", centred, "each anchor's loss to depend on its own terms alone", set()),
    ("attraction", pushes_positives, "got the opposite at 24 of 24 anchors.", {"repulsion"}),
    ("repulsion", forgets_negatives, "got no change at any.", set()),
    ("temperature", plain_ratio, "numbers that are not finite.", set()),
    ("placeholders", divides_by_sum, "in place of anchors that do not count, got losses with 24 numbers", set()),
    ("placeholders", unguarded, "got a derivative by `positive_sum` with 24 numbers that are not finite.", set()),
    ("no negatives", claims_too_much, "without negatives, as `needs_negatives` is False, got losses with 24", set()),
    ("float64", narrow, "got torch.float32.", set()),
    ("arguments", overwrites, "got other numbers in `n_positives`.", set()),
    ("repeatable", drawn, "the same losses of the same terms a second time, got ", {"anchors apart", "float64"}),
    ("compile", branches, "torch.compile(fullgraph=True) to give the same losses, got ", set()),
]


@pytest.mark.parametrize(("law", "formula", "words", "also"), FORMULAS, ids=lambda v: getattr(v, "__name__", None))
def test_broken_formulas_fail_by_name(law, formula, words, also):
    found = broken(check_formula, formula, compile=law == "compile")
    assert found[law].startswith(f"{law}: Expected ")
    assert words in found[law]
    assert set(found) <= {law} | also


# The kit itself


def test_every_law_can_fail():
    assert {row[0] for row in LOSSES} == set(LOSS_LAWS)
    assert {row[0] for row in HEADS} == set(HEAD_LAWS)
    assert {row[0] for row in FORMULAS} == set(FORMULA_LAWS)


def test_the_guide_names_every_law():
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text()
    assert [law for law in (*LOSS_LAWS, *HEAD_LAWS, *FORMULA_LAWS) if law not in page] == []


def test_all_failures_at_once():
    """SupCon as it is mostly copied: no guard for an anchor without positives, exp without a shift."""

    def naive(*, weights=(1.0,)):
        def loss(features, labels):
            total = 0.0
            for weight, x in zip(weights, features, strict=True):
                z = nn.functional.normalize(x.flatten(2), dim=1).movedim(1, 2)
                y = labels[:, :: labels.shape[1] // x.shape[2], :: labels.shape[2] // x.shape[3]].flatten(1)
                logits, others = z @ z.mT / 0.07, 1 - torch.eye(z.shape[1])
                same = (y[:, None] == y[..., None]) * others
                log_share = logits - (logits.exp() * others).sum(2, keepdim=True).log()
                total = total - weight * ((same * log_share).sum(2) / same.sum(2)).mean()
            return total

        return loss

    found = broken(check_loss, naive, kind="local", spatial_dims=(2,), levels=2)
    assert {"no positives", "mapping", "weight zero", "half precision"} <= set(found), found


def test_the_random_state_is_left_alone():
    before = torch.random.get_rng_state()
    check_head(Plain, spatial_dims=(2,))
    check_loss(MultiScaleGlobalContrast, kind="global")
    assert torch.random.get_rng_state().equal(before)


def test_state_that_is_named():
    check_loss(Queue, kind="local", spatial_dims=(2,), levels=2, state=("queue",))


def test_bad_arguments():
    with pytest.raises(TypeError, match="Expected `factory` to make the loss, got the loss itself, DeepSuperv"):
        check_loss(DeepSupervisionDice(), kind="segmentation")
    with pytest.raises(TypeError, match="Expected `factory` to make the head, got the head itself, GlobalHead."):
        check_head(GlobalHead(4))
    with pytest.raises(ValueError, match="Expected `kind` to be one of 'global', 'local', 'segmentation', got 'dense'"):
        check_loss(DeepSupervisionDice, kind="dense")
    with pytest.raises(ValueError, match=re.escape("Expected `skip` to be one of 'scalar'")):
        check_loss(DeepSupervisionDice, kind="segmentation", skip=("scaler",))
    with pytest.raises(ValueError, match="Expected `spatial_dims` to be one of 1, 2, 3, got 4"):
        check_head(GlobalHead, spatial_dims=(4,))


def test_what_cannot_be_built_is_one_failure():
    def factory(*, weights):
        raise RuntimeError("no.")

    found = broken(check_loss, factory, kind="local", spatial_dims=(2,))
    assert found == {
        "scalar": "scalar (2-D): Expected one floating-point number of ordinary input, got RuntimeError: no."
    }
