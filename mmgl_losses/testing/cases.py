"""The input that a loss is checked with."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmgl_losses.testing.laws import differs, noise, not_finite

Kind = Literal["global", "local", "segmentation"]
CLASSES, CHANNELS, IMAGES = 3, 8, 4
IGNORED = 255
BASE = {1: (6,), 2: (4, 6), 3: (2, 3, 2)}  # the coarsest level


@dataclass(frozen=True)
class LossCase:
    """A loss, and the input that its kind is called with.

    Global losses take levels (rows, channels); the others levels (images, channels, *spatial) from coarse to fine,
    and labels twice as large as the finest of them, constant over the cells of the coarsest.
    """

    factory: Callable[..., Any]
    kind: str
    dims: int
    count: int
    state: tuple[str, ...]
    compiled: bool

    def takes(self, option: str) -> bool:
        """Whether the factory has an option of this name."""
        if getattr(self.factory, "__init__", None) is nn.Module.__init__:
            return False  # a module without a constructor of its own
        parameters = inspect.signature(self.factory).parameters.values()
        return any(p.name == option or p.kind is p.VAR_KEYWORD for p in parameters)

    def build(self, **options: Any) -> Callable[..., Any]:
        """The loss, with as many weights as there are levels if it takes weights."""
        if self.takes("weights"):
            total = self.count * (self.count + 1) / 2
            options.setdefault("weights", tuple((i + 1) / total for i in range(self.count)))
        return self.factory(**options)

    @cached_property
    def loss(self) -> Callable[..., Any]:
        """The loss with its own defaults."""
        return self.build()

    @property
    def takes_instances(self) -> bool:
        """Whether the loss can be told which rows are one image."""
        call = self.loss.forward if isinstance(self.loss, nn.Module) else self.loss
        return "instances" in inspect.signature(call).parameters

    def spatial(self, level: int) -> tuple[int, ...]:
        """The size of a level; ``level=count`` is that of the labels."""
        return tuple(n * 2**level for n in BASE[self.dims]) if self.kind != "global" else ()

    def levels(self, images: int = IMAGES, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Ordinary input of every level."""
        channels = CLASSES if self.kind == "segmentation" else CHANNELS
        rows = 2 * images if self.kind == "global" else images
        shapes = [(rows, channels, *self.spatial(i)) for i in range(self.count)]
        return [noise(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]

    def labels(self, images: int = IMAGES) -> tuple[Tensor, ...]:
        """What follows the levels: nothing, or labels of which every image has all classes."""
        if self.kind == "global":
            return ()
        cells = noise(images, *BASE[self.dims], seed=99).flatten(1).argsort(1) % CLASSES
        labels = cells.unflatten(1, BASE[self.dims])
        for axis in range(1, labels.ndim):
            labels = labels.repeat_interleave(2**self.count, axis)
        return (labels,)

    def filled(self, value: int, images: int = IMAGES) -> tuple[Tensor, ...]:
        """Labels that are all the same."""
        return (torch.full((images, *self.spatial(self.count)), value),)

    def gradients(self, levels: Sequence[Tensor], *rest: Any, loss: Any = None) -> tuple[Tensor, list[Tensor | None]]:
        """The value and the gradient of each level, None where it has none."""
        leaves = [level.detach().clone().requires_grad_() for level in levels]
        value = (self.loss if loss is None else loss)(leaves, *rest)
        return value.detach(), list(torch.autograd.grad(value, leaves, allow_unused=True))

    def survives(self, levels: Sequence[Tensor], *rest: Any, loss: Any = None) -> str | None:
        """What is wrong with the value and gradient of input from which little or nothing can be learnt."""
        leaves = [level.detach().clone().requires_grad_() for level in levels]
        value = (self.loss if loss is None else loss)(leaves, *rest)
        if not isinstance(value, Tensor) or not value.requires_grad:
            return f"{value!r} without a graph"
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        bad = [not_finite("a gradient", g) for g in gradients if g is not None]
        return not_finite("the value", value) or next((words for words in bad if words), None)

    def same(self, levels: Any, *rest: Any, loss: Any = None, relative: float = 1e-4) -> str | None:
        """How far the value of this input is from that of the ordinary one."""
        value = (self.loss if loss is None else loss)(levels, *rest)
        return differs(value, self.loss(self.levels(), *self.labels()), relative=relative)
