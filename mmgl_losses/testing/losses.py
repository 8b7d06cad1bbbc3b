"""What is expected of a loss, whatever it computes."""

import pickle
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from typing import Any, get_args

import torch
from torch import Tensor, nn

from mmgl_losses import checks
from mmgl_losses.testing.cases import BASE, IGNORED, IMAGES, Kind, LossCase
from mmgl_losses.testing.laws import Laws, differs, not_finite, scattered

LAWS: Laws[LossCase] = Laws()
_FINITE = "a finite value with a graph and finite gradients"


@LAWS.add("scalar", "one floating-point number of ordinary input", first=True)
def _scalar(case: LossCase) -> str | None:
    value = case.loss(case.levels(), *case.labels())
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return None if value.ndim == 0 and value.is_floating_point() else f"{value.dtype} of shape {tuple(value.shape)}"


@LAWS.add("finite", "a finite value of ordinary input", first=True)
def _finite(case: LossCase) -> str | None:
    return not_finite("the value", case.loss(case.levels(), *case.labels()))


@LAWS.add("gradient", "a graph and, at every level, a finite gradient that is not all zero", first=True)
def _gradient(case: LossCase) -> str | None:
    value = case.loss([level.requires_grad_() for level in case.levels()], *case.labels())
    if not value.requires_grad:
        return "a value without a graph"
    for level, gradient in enumerate(case.gradients(case.levels(), *case.labels())[1]):
        if gradient is None or not gradient.any():
            return f"no gradient at level {level}"
        if words := not_finite(f"a gradient at level {level}", gradient):
            return words
    return None


@LAWS.add("slope", "the gradient to be the slope of the value")
def _slope(case: LossCase) -> str | None:
    """Along the gradient itself, by a central difference."""
    levels, rest = case.levels(dtype=torch.float64), case.labels()
    gradients = [g for g in case.gradients(levels, *rest)[1] if g is not None]
    length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    step = 1e-2
    there, back = ([x + s * g / length for x, g in zip(levels, gradients, strict=True)] for s in (step, -step))
    with torch.no_grad():
        slope = (case.loss(there, *rest) - case.loss(back, *rest)) / (2 * step)
    return differs(length, slope.double(), relative=2e-2)


@LAWS.add(
    "no positives",
    f"{_FINITE} where no anchor has a positive",
    applies=lambda case: case.kind == "local" or (case.kind == "global" and case.takes_instances),
)
def _no_positives(case: LossCase) -> str | None:
    levels = case.levels()
    if case.kind == "global":
        return case.survives(levels, torch.arange(len(levels[0])))
    shape = (IMAGES, *case.spatial(case.count))
    return case.survives(levels, torch.arange(torch.Size(shape).numel()).reshape(shape))


@LAWS.add("one class", f"{_FINITE} where all labels are the same", applies=lambda case: case.kind != "global")
def _one_class(case: LossCase) -> str | None:
    return case.survives(case.levels(), *case.filled(0)) or case.survives(case.levels(), *case.filled(1))


@LAWS.add("one image", f"{_FINITE} of a batch of one image")
def _one_image(case: LossCase) -> str | None:
    return case.survives(case.levels(images=1), *case.labels(images=1))


@LAWS.add(
    "everything ignored",
    f"{_FINITE} where every label is `ignore_index`",
    applies=lambda case: case.kind != "global" and case.takes("ignore_index"),
)
def _everything_ignored(case: LossCase) -> str | None:
    return case.survives(case.levels(), *case.filled(IGNORED), loss=case.build(ignore_index=IGNORED))


@LAWS.add(
    "ignored points",
    "the value not to depend on what lies under `ignore_index`",
    applies=lambda case: case.kind != "global" and case.takes("ignore_index"),
)
def _ignored_points(case: LossCase) -> str | None:
    loss, (labels,) = case.build(ignore_index=IGNORED), case.labels()
    hidden = labels.clone()
    hidden[:, : labels.shape[1] // 2] = IGNORED
    others = case.levels()
    for level in others:
        level[:, :, : level.shape[2] // 2] = 7.0
    return differs(loss(others, hidden), loss(case.levels(), hidden), relative=1e-4)


@LAWS.add("order of images", "the same value whatever the order of the images")
def _order(case: LossCase) -> str | None:
    """Reversed: the first half stays the first augmentations of the second."""
    return case.same([x.flip(0) for x in case.levels()], *(y.flip(0) for y in case.labels()))


@LAWS.add(
    "order of points",
    "the same value with the spatial axes in another order",
    applies=lambda case: case.kind != "global" and case.dims > 1,
)
def _points(case: LossCase) -> str | None:
    axes = tuple(range(2, 2 + case.dims))
    levels = [x.permute(0, 1, *reversed(axes)) for x in case.levels()]
    return case.same(levels, *(y.permute(0, *(a - 1 for a in reversed(axes))) for y in case.labels()))


@LAWS.add("mapping", "the levels as a mapping to count as the levels as a list")
def _mapping(case: LossCase) -> str | None:
    return case.same({f"level.{i}": level for i, level in enumerate(case.levels())}, *case.labels())


@LAWS.add(
    "weight zero",
    "a level of weight 0 to be left out, NaN or not",
    applies=lambda case: case.takes("weights") and case.count > 1,
)
def _weight_zero(case: LossCase) -> str | None:
    loss = case.build(weights=(0.0, *[1.0] * (case.count - 1)))
    levels = case.levels()
    levels[0].fill_(torch.nan)
    return case.survives(levels, *case.labels(), loss=loss)


@LAWS.add(
    "number of levels",
    "an error where there are fewer levels than weights",
    applies=lambda case: case.takes("weights") and case.count > 1,
)
def _number_of_levels(case: LossCase) -> str | None:
    try:
        value = case.loss(case.levels()[1:], *case.labels())
    except (ValueError, TypeError):
        return None
    return f"the value {value.item():.6g}"


@LAWS.add("state", "an empty state_dict but for what `state=` names")
def _state(case: LossCase) -> str | None:
    held = case.loss.state_dict() if isinstance(case.loss, nn.Module) else {}
    unknown = sorted(set(held) - set(case.state))
    return ", ".join(map(repr, unknown)) if unknown else None


@LAWS.add("deepcopy", "a deep copy to give the same value")
def _deepcopy(case: LossCase) -> str | None:
    return case.same(case.levels(), *case.labels(), loss=deepcopy(case.loss))


@LAWS.add("pickle", "a pickled and restored loss to give the same value")
def _pickle(case: LossCase) -> str | None:
    return case.same(case.levels(), *case.labels(), loss=pickle.loads(pickle.dumps(case.loss)))


@LAWS.add("float64", "the value of float64 input to be that of float32, to 1e-4")
def _float64(case: LossCase) -> str | None:
    return case.same([x.double() for x in case.levels()], *case.labels())


@LAWS.add("half precision", "the value of float16 and bfloat16 input to be that of the same numbers in float32, to 1 %")
def _half(case: LossCase) -> str | None:
    for dtype in (torch.float16, torch.bfloat16):
        levels = [x.to(dtype) for x in case.levels()]
        wide = case.loss([x.float() for x in levels], *case.labels())
        if words := differs(case.loss(levels, *case.labels()), wide, relative=1e-2):
            return f"{words} ({dtype})"
        if words := case.survives(levels, *case.labels()):
            return f"{words} ({dtype})"
    return None


@LAWS.add("autocast", "the value under autocast to be that without, to 1 %")
def _autocast(case: LossCase) -> str | None:
    expected = case.loss(case.levels(), *case.labels())
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype=dtype):
            value = case.loss(case.levels(), *case.labels())
        if words := differs(value, expected, relative=1e-2):
            return f"{words} ({dtype})"
    return None


@LAWS.add("strides", "the same value whatever the order of memory")
def _strides(case: LossCase) -> str | None:
    return case.same([scattered(x) for x in case.levels()], *map(scattered, case.labels()))


@LAWS.add("arguments", "its arguments to be left as they are")
def _arguments(case: LossCase) -> str | None:
    levels, rest = case.levels(), case.labels()
    given = list(levels)
    case.loss(given, *rest)
    if len(given) != len(levels) or any(a is not b for a, b in zip(given, levels, strict=True)):
        return "another list of levels"
    before = [*case.levels(), *case.labels()]
    changed = [i for i, (a, b) in enumerate(zip([*levels, *rest], before, strict=True)) if not a.equal(b)]
    return f"other numbers in argument {changed[0]}" if changed else None


@LAWS.add("random state", "the global random state to be left as it is")
def _random_state(case: LossCase) -> str | None:
    before = torch.random.get_rng_state()
    case.loss(case.levels(), *case.labels())
    return None if torch.random.get_rng_state().equal(before) else "another state"


@LAWS.add("repeatable", "the same value of the same input a second time")
def _repeatable(case: LossCase) -> str | None:
    return case.same(case.levels(), *case.labels(), relative=1e-6)


@LAWS.add(
    "compile", "torch.compile(fullgraph=True) to give the same value and gradient", applies=lambda case: case.compiled
)
def _compile(case: LossCase) -> str | None:
    torch.compiler.reset()
    compiled = torch.compile(case.loss, fullgraph=True, backend="aot_eager")
    value, gradients = case.gradients(case.levels(), *case.labels(), loss=compiled)
    expected, others = case.gradients(case.levels(), *case.labels())
    pairs = [(a, b) for a, b in zip(gradients, others, strict=True) if a is not None and b is not None]
    words = [differs(value, expected, relative=1e-4), *(differs(a, b, relative=1e-3) for a, b in pairs)]
    return next((w for w in words if w), None)


def check_loss(
    factory: Callable[..., Any],
    *,
    kind: Kind,
    spatial_dims: Sequence[int] = (2, 3),
    levels: int = 3,
    state: Collection[str] = (),
    compile: bool = False,
    skip: Collection[str] = (),
) -> tuple[str, ...]:
    """Check that a loss keeps the laws that the losses of this package keep.

    Args:
        factory: what makes the loss, from keyword arguments: its class, or a ``functools.partial`` of it. Of the
            options it takes, ``weights`` and ``ignore_index`` are used for the laws about them.
        kind: how the loss is called: ``"global"``, ``loss(embeddings)``; ``"local"``, ``loss(features, labels)``;
            or ``"segmentation"``, ``loss(logits, labels)`` with three classes.
        spatial_dims: the numbers of spatial axes to check; a global loss has none.
        levels: the number of levels to check with.
        state: what its ``state_dict`` is meant to hold, such as a queue.
        compile: whether ``torch.compile(fullgraph=True)`` has to work; this takes seconds.
        skip: names of laws that the loss is meant to break.

    Returns:
        The names of the laws that were checked. Some apply to some losses only.

    Raises:
        ConformanceError: a law does not hold; it lists all that do not.
        TypeError: `factory` is a loss and not what makes one.
        ValueError: an unknown kind or law.

    Example:
        >>> from mmgl_losses import MultiScaleLocalSupCon
        >>> laws = check_loss(MultiScaleLocalSupCon, kind="local", spatial_dims=(2,), levels=1)
        >>> "no positives" in laws
        True
    """
    checks.one_of("kind", kind, get_args(Kind))
    dims = [0] if kind == "global" else list(spatial_dims)
    if isinstance(factory, nn.Module):
        cure = "Pass its class, or functools.partial of it with its options."
        raise TypeError(
            checks.message("`factory` to make the loss", f"the loss itself, {type(factory).__name__}", cure)
        )
    for n in dims:
        if n:
            checks.choice("spatial_dims", n, BASE)
    checks.integer("levels", levels, least=1)
    cases = [(f"{n}-D" if n else "", LossCase(factory, kind, n, levels, tuple(state), compile)) for n in dims]
    return LAWS.check(factory, cases, skip)
