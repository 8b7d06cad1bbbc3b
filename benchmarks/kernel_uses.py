"""What `impl="fused"` launches, found out without a GPU: the code that launches runs with recorders for kernels.

A launch is kept as what decides how a kernel is compiled: types of tensors, values of options, and no numbers. Lists of
launches go to environments that have Triton and no torch, so nothing here imports either before it is needed.
"""

import hashlib
import importlib
import importlib.util
import json
import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "mmgl_losses.contrast.fused"
MODULES = "arrange_kernels", "forward_kernels", "finish_kernels", "backward_kernels"
DTYPES = "bfloat16", "float16", "float32"
WIDTHS = 16, 32, 64, 128, 256


class Use(NamedTuple):
    """One launch: a kernel, its positional arguments (a tensor by its type), and its options."""

    kernel: str  #: "module.function"
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    tried: bool = False  #: with a tile that is not the usual one

    def key(self) -> str:
        """What makes two uses the same."""
        return json.dumps(self[:3])

    @property
    def name(self) -> str:
        """Of the kernel."""
        return self.kernel.split(".")[-1]

    @property
    def dtype(self) -> str:
        """Of the operands."""
        return next((x for x in DTYPES[:2] if x in self.arguments), DTYPES[2])

    @property
    def width(self) -> int:
        """Numbers of a row of an operand, padded; 0 where there is none."""
        return self.options.get("D", 0)

    def __str__(self) -> str:
        types = "/".join(dict.fromkeys(x for x in self.arguments if isinstance(x, str) and "float" in x))
        chosen = {True: "", False: "not "}
        options = [
            f"{chosen[v]}{k}" if isinstance(v, bool) else f"{k}={v}"
            for k, v in self.options.items()
            if k != "PRECISION" and v is not None
        ]
        return f"{self.name} {types} {' '.join(options)}".lower()


class Recorder:
    """Stands for a kernel, and notes how it is launched."""

    def __init__(self, name: str, uses: list[Use]) -> None:
        self.name, self.uses = name, uses

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        assert all(0 < size < 2**31 for size in grid), grid
        return self.launch

    def launch(self, *arguments: Any, **options: Any) -> None:
        """Note it."""
        import torch

        kinds = tuple(
            str(x.dtype)[6:] if isinstance(x, torch.Tensor) else 0.5 if isinstance(x, float) else x for x in arguments
        )
        self.uses.append(Use(self.name, kinds, options))


@contextmanager
def recorders(uses: list[Use], arch: int) -> Iterator[None]:
    """In place of the kernels stand recorders; the device is of an architecture."""
    from unittest.mock import patch

    import triton

    from mmgl_losses.contrast.fused import plan

    modules = {name: importlib.import_module(f"{PACKAGE}.{name}") for name in MODULES}  # all, before any is changed
    with ExitStack() as stack:
        stack.enter_context(patch.object(plan, "major_of", lambda device: arch // 10))
        for module, found in modules.items():
            own = [name for name, x in vars(found).items() if isinstance(x, triton.JITFunction)]
            for name in own:
                stack.enter_context(patch.object(found, name, Recorder(f"{module}.{name}", uses)))
        yield


def recorded(problem: Any, arch: int) -> list[Use]:
    """What the forward and the backward of a problem launch on a device of an architecture, and its mean losses."""
    from dataclasses import replace
    from unittest.mock import patch

    import torch

    from mmgl_losses.contrast import fused
    from mmgl_losses.contrast.fused import plan
    from mmgl_losses.contrast.problem import Upstream

    uses: list[Use] = []
    sorts = problem.own and problem.key_mask is None and problem.tolerance is None
    plain = sorts and problem.key_log_weights is None
    with recorders(uses, arch):
        # Few points, and many that are too few for the device; points as they are, and as unit vectors.
        many, bare = [(0, True)] if sorts else [], [(plan.FEW, False)] if plain else []
        for few, unit in [(plan.FEW, True), *many, *bare]:
            with patch.object(plan, "FEW", few):
                posed = replace(problem, unit=unit)
                results = fused.forward(posed)
                zeros = torch.zeros_like(results.positives)
                fused.backward(posed, Upstream(results[:2], (zeros, zeros), zeros), (True, True))
                for formula in fused.FORMULAS if unit and fused.takes(posed, "supcon") else ():
                    options = {"negatives": formula in ("decoupled", "mmgl_local"), "average": formula != "decoupled"}
                    loss, saved = fused.losses(posed, formula, **options)
                    fused.losses_backward(posed, saved, torch.zeros_like(loss), (True, True))
    return uses


def problems(dtypes: tuple[str, ...], widths: tuple[int, ...], *, everything: bool) -> Iterator[Any]:
    """A problem of each kind: whose keys, how bounded, with masks, weights and tolerance or without."""
    import torch

    from mmgl_losses.contrast import pose

    groups, n, m = 2, 70, 90

    def blank(*shape: int) -> Any:
        """A tensor without numbers: what is launched depends on none."""
        return torch.zeros(shape, device="meta")

    for dtype, width in product(dtypes, widths):
        wide = torch.bfloat16 if dtype == "bfloat16" else getattr(torch, dtype)
        for keys, bound, masked, weighted, tolerance in product(
            ("same", "other", "self"), (1.0, None), (False, True), (False, True), (None, 1.0)
        ):
            plain = keys == "same" and not (masked or weighted or tolerance)
            if not everything and width != 64 and not plain:
                continue
            other = keys != "same"
            count = m if other else n
            key_mask = blank(groups, count).bool() if masked else None
            yield pose(
                blank(groups, n, width),
                blank(groups, n),
                temperature=0.1,
                precision=wide,
                bound=bound,
                keys=blank(groups, m, width) if other else None,
                key_ids=blank(groups, m) if other else None,
                self_index=blank(groups, n).long() if keys == "self" else None,
                key_mask=key_mask,
                anchor_mask=blank(groups, n).bool() if masked and other else key_mask,
                key_log_weights=blank(groups, count) if weighted else None,
                tolerance=tolerance,
            )


def listed(
    dtypes: tuple[str, ...] = DTYPES,
    widths: tuple[int, ...] = WIDTHS,
    arch: int = 90,
    *,
    everything: bool = True,
    candidates: bool = False,
) -> list[Use]:
    """All launches that differ; `candidates`: with the tiles that `benchmarks.gpu` tries, too."""
    found: dict[str, Use] = {}
    for problem in problems(dtypes, widths, everything=everything):
        for use in recorded(problem, arch):
            found.setdefault(one_kernel(use), use)
    if candidates:
        for use in tried(arch):
            found.setdefault(one_kernel(use), use._replace(tried=True))
    return list(found.values())


def one_kernel(use: Use) -> str:
    """What makes two launches use one kernel: the same, but for values that no kernel is made for."""
    parameters = kernel(use.kernel).params
    fixed = tuple(
        None if parameter.do_not_specialize and not isinstance(value, str) else value
        for parameter, value in zip(parameters, use.arguments, strict=False)
    )
    return use._replace(arguments=fixed).key()


def tried(arch: int) -> Iterator[Use]:
    """The launches of `benchmarks.gpu` with other tiles."""
    from unittest.mock import patch

    from benchmarks.gpu_items import CUTS
    from benchmarks.kinds import DIMS
    from mmgl_losses.contrast.fused import plan

    for kernel, cuts in CUTS.items():
        for cut in cuts:
            with patch.object(plan, "tile", lambda *_, cut=cut: plan.Tile(*cut[:4])):
                for problem in problems(("bfloat16",), DIMS, everything=False):
                    usual = problem.limit is not None and problem.own and problem.key_mask is None
                    if usual and problem.tolerance is None and problem.key_log_weights is None:
                        yield from (use for use in recorded(problem, arch) if use.name == kernel)


def kernel(name: str) -> Any:
    """A kernel by its name; without torch its package is only a folder."""
    module, function = name.split(".")
    if importlib.util.find_spec("torch") is None:
        folder = Path(__file__).parent.parent
        for package in ("mmgl_losses", "mmgl_losses.contrast", PACKAGE):
            empty = types.ModuleType(package)
            empty.__path__ = [str(folder / package.replace(".", "/"))]
            sys.modules.setdefault(package, empty)
    return getattr(importlib.import_module(f"{PACKAGE}.{module}"), function)


def spread(uses: list[tuple[int, Use]]) -> list[tuple[int, Use]]:
    """Launches and their architectures in the order in which to compile them where time may run out.

    First comes one of every kernel, type, width and architecture, then a second one of each, and so on; which is first
    is as good as random, and always the same.
    """
    turns: Counter[tuple[Any, ...]] = Counter()
    found = []
    for arch, use in sorted(uses, key=lambda x: (digest(x[1].key()), x[0])):
        kind = arch, use.tried, use.name, use.dtype, use.width
        found.append((use.tried, turns[kind], arch, use))
        turns[kind] += 1
    return [(arch, use) for _, _, arch, use in sorted(found, key=lambda x: x[:2])]


def digest(*parts: Any) -> str:
    """A short name for something long."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
