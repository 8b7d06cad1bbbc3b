"""What is expected of a head, whatever it maps to."""

import pickle
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmgl_losses import checks
from mmgl_losses.testing.laws import Laws, differs, noise, not_finite, scattered

CHANNELS, IMAGES = 16, 4
SIZES = {1: (11,), 2: (7, 10), 3: (5, 6, 7)}


@dataclass(frozen=True)
class HeadCase:
    """A head for feature maps of some number of spatial axes."""

    factory: Callable[..., Any]
    dims: int
    compiled: bool

    @cached_property
    def head(self) -> nn.Module:
        """The head, as training has it."""
        return self.factory(CHANNELS)

    @cached_property
    def evaluated(self) -> nn.Module:
        """The head, as evaluation has it."""
        return deepcopy(self.head).eval()

    def feature(self, images: int = IMAGES) -> Tensor:
        """Features (images, channels, *spatial) of odd size."""
        return noise(IMAGES, CHANNELS, *SIZES[self.dims])[:images]

    def same(self, output: Tensor, *, relative: float = 1e-4) -> str | None:
        """How far an output is from that of the head in evaluation."""
        return differs(output, self.evaluated(self.feature()), relative=relative)


LAWS: Laws[HeadCase] = Laws()


@LAWS.add("module", "a torch.nn.Module from the number of channels", first=True)
def _module(case: HeadCase) -> str | None:
    return None if isinstance(case.head, nn.Module) else type(case.head).__name__


@LAWS.add("shape", "finite floating-point numbers (B, D) or (B, D, *spatial) of features (B, C, *spatial)", first=True)
def _shape(case: HeadCase) -> str | None:
    output = case.head(case.feature())
    if not isinstance(output, Tensor):
        return type(output).__name__
    if not output.is_floating_point() or output.ndim not in (2, 2 + case.dims) or len(output) != IMAGES:
        return f"{output.dtype} of shape {tuple(output.shape)} of features {tuple(case.feature().shape)}"
    return not_finite("an output", output)


@LAWS.add("gradient", "a finite gradient for the feature and for every parameter")
def _gradient(case: HeadCase) -> str | None:
    """A parameter without a gradient is one that DistributedDataParallel waits for."""
    feature = case.feature().requires_grad_()
    output = case.head(feature)
    if not output.requires_grad:
        return "an output without a graph"
    inputs = {"the feature": feature, **{name: p for name, p in case.head.named_parameters() if p.requires_grad}}
    weights = noise(*output.shape, seed=1)  # a plain sum has no gradient behind some normalisations
    found = torch.autograd.grad((output * weights).sum(), list(inputs.values()), allow_unused=True)
    for name, gradient in zip(inputs, found, strict=True):
        if gradient is None:
            return f"none for {name}"
        if words := not_finite("one", gradient):
            return f"{words} for {name}"
    return None


@LAWS.add("images apart", "each image's output to depend on that image alone in evaluation, in a batch of one too")
def _images(case: HeadCase) -> str | None:
    alone = [case.evaluated(case.feature()[i : i + 1]) for i in range(IMAGES)]
    if any(len(output) != 1 for output in alone):
        return f"the shape {tuple(alone[0].shape)} of one image"
    return case.same(torch.cat(alone))


@LAWS.add("state_dict", "a new head with the state_dict of another to be that head")
def _state_dict(case: HeadCase) -> str | None:
    torch.manual_seed(1)  # to begin elsewhere
    other = case.factory(CHANNELS)
    other.load_state_dict(case.head.state_dict(), strict=True)
    return case.same(other.eval()(case.feature()))


@LAWS.add("deepcopy", "a deep copy to give the same output and share no memory")
def _deepcopy(case: HeadCase) -> str | None:
    other = deepcopy(case.evaluated)
    shared = {p.data_ptr() for p in case.evaluated.parameters()} & {p.data_ptr() for p in other.parameters()}
    return "shared parameters" if shared else case.same(other(case.feature()))


@LAWS.add("pickle", "a pickled and restored head to give the same output")
def _pickle(case: HeadCase) -> str | None:
    return case.same(pickle.loads(pickle.dumps(case.evaluated))(case.feature()))


@LAWS.add("float64", "the head in float64 to give the output of float32, to 1e-4")
def _float64(case: HeadCase) -> str | None:
    output = deepcopy(case.evaluated).double()(case.feature().double())
    return case.same(output) if output.dtype == torch.float64 else f"{output.dtype} of float64"


@LAWS.add("bfloat16", "the head in bfloat16 to give the output of float32, to 10 %")
def _bfloat16(case: HeadCase) -> str | None:
    return case.same(deepcopy(case.evaluated).bfloat16()(case.feature().bfloat16()), relative=0.1)


@LAWS.add("autocast", "the output under autocast to be that without, to 10 %")
def _autocast(case: HeadCase) -> str | None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = case.evaluated(case.feature())
    return case.same(output, relative=0.1)


@LAWS.add("strides", "the same output whatever the order of memory")
def _strides(case: HeadCase) -> str | None:
    return case.same(case.evaluated(scattered(case.feature())))


@LAWS.add("arguments", "its argument to be left as it is")
def _arguments(case: HeadCase) -> str | None:
    feature = case.feature().clone()
    case.head(feature)
    return None if feature.equal(case.feature()) else "other numbers in the feature"


@LAWS.add("random state", "the global random state to be left as it is in evaluation")
def _random_state(case: HeadCase) -> str | None:
    before = torch.random.get_rng_state()
    case.evaluated(case.feature())
    return None if torch.random.get_rng_state().equal(before) else "another state"


@LAWS.add("repeatable", "the same output of the same feature a second time in evaluation")
def _repeatable(case: HeadCase) -> str | None:
    return case.same(case.evaluated(case.feature()), relative=1e-6)


@LAWS.add("compile", "torch.compile(fullgraph=True) to give the same output", applies=lambda case: case.compiled)
def _compile(case: HeadCase) -> str | None:
    torch.compiler.reset()
    return case.same(torch.compile(case.evaluated, fullgraph=True, backend="aot_eager")(case.feature()))


def check_head(
    factory: Callable[..., Any],
    *,
    spatial_dims: Sequence[int] = (2, 3),
    compile: bool = False,
    skip: Collection[str] = (),
) -> tuple[str, ...]:
    """Check that a head keeps the laws that the heads of this package keep.

    Args:
        factory: what makes the head from the number of channels of a feature map: its class, or a
            ``functools.partial`` of it with its options.
        spatial_dims: the numbers of spatial axes to check.
        compile: whether ``torch.compile(fullgraph=True)`` has to work; this takes seconds.
        skip: names of laws that the head is meant to break.

    Returns:
        The names of the laws that were checked.

    Raises:
        ConformanceError: a law does not hold; it lists all that do not.
        TypeError: `factory` is a head and not what makes one.
        ValueError: an unknown law or number of axes.

    Example:
        >>> from functools import partial
        >>> from mmgl_losses import LocalHead
        >>> laws = check_head(partial(LocalHead, stride=2))
        >>> "images apart" in laws
        True
    """
    if isinstance(factory, nn.Module):
        cure = "Pass its class, or functools.partial of it with its options."
        raise TypeError(
            checks.message("`factory` to make the head", f"the head itself, {type(factory).__name__}", cure)
        )
    for n in spatial_dims:
        checks.choice("spatial_dims", n, SIZES)
    return LAWS.check(factory, [(f"{n}-D", HeadCase(factory, n, compile)) for n in spatial_dims], skip)
