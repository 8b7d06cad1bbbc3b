"""``python -m benchmarks.compile_kernels``: every kernel compiled ahead of time, and what it takes of a GPU.

No GPU is needed. `kernel_uses` finds out what is launched; then Triton compiles each launch for each architecture, and
the assembler's report is held against bounds. Kernels, types, widths and architectures take turns, so that what is
compiled in any time is a sample of all. With ``--out FILE`` nothing is lost at a stop: what is there already, by the
same version of Triton and from the same kernels, is not compiled again.

The two halves run apart as well: ``--list FILE`` writes down what would be launched, and ``--uses FILE`` compiles that
in an environment that has Triton and no torch. With ``--cache FOLDER`` the compiled kernels stay there, under the keys
by which the same version of Triton, under the same version of Python, finds them on a GPU of that architecture.
"""

import argparse
import importlib
import json
import re
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.kernel_uses import DTYPES, PACKAGE, WIDTHS, Use, digest, kernel, listed, spread

ARCHITECTURES = 80, 90, 100
SHARED = {80: 164, 90: 228, 100: 228}  # KiB of a multiprocessor; each block takes 1 KiB more than it asks for


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


class Bounds(NamedTuple):
    """Blocks that a multiprocessor holds at least, and bytes of stack of a thread at most."""

    blocks: int
    stack: int


# By kernel and whether operands are of half precision, for features of more than 128 numbers.
WIDE = {
    ("credit", True): Bounds(2, 0), ("rows", True): Bounds(2, 0), ("weigh", True): Bounds(1, 0),
    ("credit", False): Bounds(2, 256), ("rows", False): Bounds(2, 256), ("weigh", False): Bounds(2, 512),
}  # fmt: skip


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


def bounds(use: Use) -> Bounds:
    """What a launch has to keep to, on every architecture; tiles that are only tried may take what they like."""
    if use.tried:
        return Bounds(blocks=1, stack=2**20)
    if use.name not in ("credit", "rows", "weigh"):
        return Bounds(blocks=2, stack=0)
    half, wide = use.dtype != "float32", use.width > 128
    if wide:
        return WIDE[use.name, half]
    return Bounds(blocks=2, stack=0) if half else Bounds(blocks=1, stack=64)


def beyond(use: Use, used: Resources) -> list[str]:
    """Which bounds a launch breaks, and how."""
    least, most = bounds(use)
    found = [f"{used.blocks} blocks, at least {least}"] if used.blocks < least else []
    return [*found, *([f"{used.stack} bytes of stack, at most {most}"] if used.stack > most else [])]


def judged(use: Use, row: dict[str, Any]) -> dict[str, Any]:
    """A row of a report, old or new, held against the bounds of today."""
    kept = {key: value for key, value in row.items() if key != "beyond"}
    broken = "failed" not in row and beyond(use, Resources(*(row[name] for name in Resources._fields)))
    return kept | ({"beyond": broken} if broken else {})


def attempt(use: Use, arch: int) -> dict[str, Any]:
    """A row of the report: what a use takes, or why it does not compile."""
    row: dict[str, Any] = {"use": str(use), "arch": arch, "tried": use.tried}
    start = time.monotonic()
    try:
        used = resources(compiled(use, arch), arch)
        row = judged(use, row | used._asdict())
    except Exception as error:  # a kernel that does not compile is a result
        row["failed"] = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[
            :200
        ]
    return row | {"seconds": round(time.monotonic() - start, 1)}


def identity(use: Use, arch: int) -> str:
    """What a row is about: a launch, an architecture, the version of Triton, and the source of the kernels."""
    return digest(use.key(), arch, importlib.import_module("triton").__version__, source())


@cache
def source() -> str:
    """The text of all kernels; Triton's own key of one depends on which were asked for theirs before."""
    folder = Path(__file__).parent.parent / PACKAGE.replace(".", "/")
    return digest(*(path.read_text() for path in sorted([*folder.glob("*_kernels.py"), folder / "spans.py"])))


def read(path: Path | None) -> dict[str, dict[str, Any]]:
    """The rows of a report by what they are about."""
    if path is None or not path.exists():
        return {}
    return {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}


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
    found.add_argument("--first", type=int, help="so many launches of the list alone")
    found.add_argument("--cache", type=Path, help="where compiled kernels stay")
    found.add_argument("--out", type=Path, help="a file of JSON lines for the report; goes on where it ends")
    found.add_argument("--jobs", type=int, default=1)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Compile everything; 1 where something does not compile, or takes more than it may."""
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
    chosen = spread(chosen)[: options.first]
    if options.list:
        options.list.write_text(json.dumps([(arch, *use) for arch, use in chosen]))
        print(f"{len(chosen)} launches listed in {options.list}")
        return 0
    before = read(options.out)
    ids = [identity(use, arch) for arch, use in chosen]
    rows = [judged(use, before[name]) for name, (_, use) in zip(ids, chosen, strict=True) if name in before]
    left = [(name, arch, use) for name, (arch, use) in zip(ids, chosen, strict=True) if name not in before]
    with ProcessPoolExecutor(options.jobs) as pool:
        attempts = pool.map(attempt, [use for _, _, use in left], [arch for _, arch, _ in left])
        for (name, _, _), row in zip(left, attempts, strict=True):
            rows.append({"id": name} | row)
            print(json.dumps(rows[-1]), flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    failed, far = ([row for row in rows if key in row] for key in ("failed", "beyond"))
    for row in (*failed, *far):
        print(f"WRONG for {row['arch']}: {row['use']}: {row.get('failed') or ', '.join(row['beyond'])}")
    print(f"{len(rows) - len(failed)} of {len(rows)} kernels compile, {len(far)} beyond their bounds")
    return 1 if failed or far else 0


if __name__ == "__main__":
    raise SystemExit(main())
