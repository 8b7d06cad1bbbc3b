"""``python -m benchmarks.compile_kernels``: every kernel compiled ahead of time, and what it takes of a GPU.

No GPU is needed. The code that launches the kernels runs on the CPU with recorders in their place, so that what is
compiled is what a GPU would be asked for; then Triton compiles each for each architecture, and the assembler's report
is held against bounds.

The two halves run apart as well: ``--list FILE`` writes down what would be launched, and ``--uses FILE`` compiles that
in an environment that has Triton and no torch. With ``--cache FOLDER`` the compiled kernels stay there, under the keys
by which the same version of Triton, under the same version of Python, finds them on a GPU of that architecture.
"""

import argparse
import importlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

ARCHITECTURES = 80, 90, 100
SHARED = {80: 164, 90: 228, 100: 228}  # KiB of a multiprocessor; each block takes 1 KiB more than it asks for
PACKAGE = "mmgl_losses.contrast.fused"
MODULES = "arrange_kernels", "forward_kernels", "finish_kernels", "backward_kernels"
DTYPES = "bfloat16", "float16", "float32"
WIDTHS = 16, 32, 64, 128, 256
USUAL = "same"  # the kind of problem that every type and width is compiled for, where not all are


class Use(NamedTuple):
    """One launch: a kernel, its positional arguments (a tensor by its type), and its options."""

    kernel: str  #: "module.function"
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def key(self) -> str:
        """What makes two uses the same."""
        return json.dumps(self)

    def __str__(self) -> str:
        types = "/".join(dict.fromkeys(x for x in self.arguments if isinstance(x, str) and "float" in x))
        chosen = {True: "", False: "not "}
        options = [
            f"{chosen[v]}{k}" if isinstance(v, bool) else f"{k}={v}"
            for k, v in self.options.items()
            if k != "PRECISION"
        ]
        return f"{self.kernel.split('.')[-1]} {types} {' '.join(options)}".lower()


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
            found.setdefault(one_kernel(use), use)
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
                        yield from (use for use in recorded(problem, arch) if use.kernel.endswith(f".{kernel}"))


class Stand:
    """A driver that names a device which is not there."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        """The architecture."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return self.arch

    def get_current_stream(self, device: int) -> int:
        """The usual one."""
        return 0


class Type:
    """A type of a tensor by its name, where there is no torch."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"torch.{self.name}"

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other)


class Aligned:
    """A tensor of a type that lies where memory is aligned."""

    def __init__(self, name: str) -> None:
        self.dtype = Type(name)

    def data_ptr(self) -> int:
        """Address."""
        return 0

    def ptr_range(self) -> int:
        """Length of what is addressed: as for a torch tensor of usual size."""
        return 0


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


def compiled(use: Use, arch: int) -> Any:
    """The kernel as Triton compiles it for a launch."""
    from triton.runtime.driver import driver

    driver.set_active(Stand(arch))  # pyright: ignore[reportArgumentType]
    arguments = [Aligned(x) if isinstance(x, str) else x for x in use.arguments]
    return kernel(use.kernel).warmup(*arguments, grid=(1,), **use.options)


class Resources(NamedTuple):
    """What a compiled kernel takes."""

    registers: int
    stack: int  #: bytes of a thread: where spilled registers go
    shared: int  #: bytes
    blocks: int  #: that a multiprocessor holds at once


def tool(name: str) -> Path:
    """One of the programs that come with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name


def resources(found: Any, arch: int) -> Resources:
    """Registers, stack and shared memory as the assembler reports them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        report = subprocess.run(
            [tool("cuobjdump"), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    used = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", report.stdout)}
    registers, warps, shared = used["REG"], found.metadata.num_warps, found.metadata.shared
    allocated = 256 * -(-32 * registers // 256)  # of a warp
    blocks = min(65536 // (allocated * warps), SHARED[arch] * 1024 // (shared + 1024), 64 // warps, 32)
    return Resources(registers, used["STACK"], shared, blocks)


def attempt(use: Use, arch: int) -> dict[str, Any]:
    """A row of the report: what a use takes, or why it does not compile."""
    row: dict[str, Any] = {"use": str(use), "arch": arch}
    start = time.monotonic()
    try:
        row |= resources(compiled(use, arch), arch)._asdict()
    except Exception as error:  # a kernel that does not compile is a result
        row["failed"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
            :200
        ]
    return row | {"seconds": round(time.monotonic() - start, 1)}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m benchmarks.compile_kernels", description=__doc__)
    found.add_argument("--architectures", type=int, nargs="+", default=list(ARCHITECTURES), choices=ARCHITECTURES)
    found.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    found.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS))
    found.add_argument("--part", action="store_true", help="all kinds of problems at width 64, the usual one at others")
    found.add_argument("--candidates", action="store_true", help="the tiles that benchmarks.gpu tries, too")
    found.add_argument("--list", type=Path, help="write what would be launched to a file, and stop")
    found.add_argument("--uses", type=Path, help="compile what such a file lists")
    found.add_argument("--cache", type=Path, help="where compiled kernels stay")
    found.add_argument("--out", type=Path, help="a file of JSON lines for the report")
    found.add_argument("--jobs", type=int, default=1)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compile everything; 1 where something does not compile."""
    options = parser().parse_args(arguments)
    if options.cache:
        options.cache.mkdir(parents=True, exist_ok=True)
        importlib.import_module("triton").knobs.cache.dir = str(options.cache)
    chosen: list[tuple[int, Use]] = []
    for arch in options.architectures:
        if options.uses:
            uses = [Use(*x[1:]) for x in json.loads(options.uses.read_text()) if x[0] == arch]
        else:
            dtypes, widths = tuple(options.dtypes), tuple(options.widths)
            uses = listed(dtypes, widths, arch, everything=not options.part, candidates=options.candidates)
        chosen += [(arch, use) for use in uses]
    if options.list:
        options.list.write_text(json.dumps([(arch, *use) for arch, use in chosen]))
        print(f"{len(chosen)} launches listed in {options.list}")
        return 0
    rows = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for row in pool.map(attempt, [use for _, use in chosen], [arch for arch, _ in chosen]):
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.out:
                options.out.write_text("".join(json.dumps(x) + "\n" for x in rows))
    failed = [row for row in rows if "failed" in row]
    print(f"{len(rows) - len(failed)} of {len(rows)} kernels compile")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
