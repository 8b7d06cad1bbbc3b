"""``python -m benchmarks.launches``: how many kernels a loss and its gradient launch on a GPU, without one.

Tensors of torch's device "meta" stand for those of a GPU: they have sizes and no numbers, so whatever reads a number
(`.item()`, `nonzero`, a copy to the CPU) fails, as it would wait on a GPU. Operations that launch a kernel there are
counted where torch carries them out, Triton's kernels by recorders in their place. The gradient's own start, a fill by
autograd, is counted, too. What the functions of torch's library launch inside is not seen: they count as they are said
to in `INSIDE`.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.kernel_uses import recorders

FREE = ("empty", "detach", "alias", "set_", "_unsafe_view")  # beside views
INSIDE = {"aten.masked_fill": 2, "aten.sort": 2, "aten.cumsum": 2}  # a copy and a fill; indices and at least one pass


class Launches(TorchDispatchMode):
    """Counts the operations on tensors of "meta" that launch something, and refuses what waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given, made = ([x for x in tree_leaves(tree) if isinstance(x, Tensor)] for tree in ((args, kwargs), out))
        of_device = [x.device.type == "meta" for x in (*given, *made)]
        name = str(func.overloadpacket)
        if any(of_device) and not func.is_view and not name.split(".")[1].startswith(("new_empty", *FREE)):
            self.found[name] += INSIDE.get(name, 1)
            waits = any(x.device.type == "cpu" and x.numel() for x in given) and name in ("aten._to_copy", "aten.copy_")
            if waits and not (kwargs or {}).get("non_blocking"):
                raise AssertionError(f"{name} waits for the device")
        return out


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Launches inside, by name: operations of torch, and kernels of `impl="fused"`."""
    from mmgl_losses.contrast import fused

    mode, uses = Launches(), []
    there = patch.object(fused, "refuses", lambda problem: None)
    with recorders(uses, 90), there, patch.object(torch, "is_autocast_enabled", lambda kind: False), mode:
        yield mode.found
    mode.found.update(use.kernel.split(".")[1] for use in uses)


def launches(loss: Callable[[list[Tensor]], Tensor], leaves: list[Tensor]) -> Counter[str]:
    """What a loss of tensors on "meta" and the gradients of these launch."""
    with counting() as found:
        torch.autograd.grad(loss(leaves), leaves)
    return found


def maps(batch: int, width: int, size: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Features (B, D, *size) without numbers."""
    return torch.empty((batch, width, *size), dtype=dtype, device="meta", requires_grad=True)


def cases() -> Iterator[tuple[str, Counter[str]]]:
    """The losses as a training step calls them."""
    from mmgl_losses import MultiScaleGlobalContrast, MultiScaleLocalSupCon
    from mmgl_losses.functional import global_contrast, local_supcon

    def local(x: list[Tensor], full: int = 1, **options: Any) -> Tensor:
        size = [full * n for n in x[0].shape[2:]]
        labels = torch.empty((len(x[0]), *size), dtype=torch.int64, device="meta")
        return local_supcon(x[0], labels, impl="fused", **options)

    for side in (40, 80):
        for formula in ("supcon", "supcon_in", "mmgl"):
            x = [maps(8, 64, (side, side))]
            yield f"local {formula}, {side}²", launches(lambda x, f=formula: local(x, formula=f), x)
        yield (
            f"local, {side}², labels of 160²",
            launches(lambda x, s=side: local(x, 160 // s), [maps(8, 64, (side, side))]),
        )
    yield "local, 40², ignore_index", launches(lambda x: local(x, ignore_index=255), [maps(8, 64, (40, 40))])
    yield "local, 40², float32", launches(local, [maps(8, 64, (40, 40), torch.float32)])
    points = [torch.empty(32, 128, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)]
    yield "global, one level", launches(lambda x: global_contrast(x[0], impl="fused"), points[:1])
    yield "global module, three levels", launches(MultiScaleGlobalContrast(impl="fused"), points)
    labels = torch.empty((8, 160, 160), dtype=torch.int64, device="meta")
    module = MultiScaleLocalSupCon(weights=(0.2, 0.2, 0.6), impl="fused")
    levels = [maps(8, 64, (side, side)) for side in (10, 20, 40)]
    yield "local module, three levels", launches(lambda x: module(x, labels), levels)


def main(arguments: list[str] | None = None) -> int:
    """A line for each case."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=__doc__)
    parser.parse_args(arguments)
    for name, found in cases():
        what = ", ".join(f"{count} {kind.removeprefix('aten.')}" for kind, count in found.most_common())
        print(f"| {name} | {found.total()} | {what} |")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
