"""``python -m benchmarks.roofline``: how far the kernels are from the limits of an H100, by a model of their code.

No GPU is needed, and no figure here was measured on one. Each kernel is compiled ahead of time; the instructions of its
two loops (pure tiles and mixed tiles) are counted by the unit that carries them out, and units work side by side:

    clocks of a tile = max(every unit alone, (products + the busiest other unit) / blocks of a multiprocessor)

as one block does one after the other, and several fill one another's gaps. Tiles are counted on the label maps of the
benchmark, programs are rounded up to whole waves, and the floor is that of `gpu_measure.floor_seconds`. The L2 cache is
not in the model: `l2_tb_s` is what the modelled time asks of it, in TB/s. Small tiles ask for more.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compile_kernels import Resources, compiled, resources, tool
from benchmarks.kernel_uses import WIDTHS, Use, listed

ARCH, CLOCK, MULTIPROCESSORS = 90, 1.755e9, 132
CEILINGS = {"bf16_tflop_s": 800.0, "tf32_tflop_s": 400.0, "exp_t_s": 3.7}  # of an H100, the first of them measured
TENSOR = 4096 * 800 / 949  # operations a clock of a multiprocessor in half precision, as large products reach them
SYNCHRONOUS = 0.63  # of that rate is what products of single warps reach: Luo et al., arXiv:2402.13499, section V
BATCH = 8
# Clocks of a quarter of a multiprocessor for an instruction of a warp, by the unit that carries it out.
UNITS = {
    "exp": (8, r"MUFU"),
    "memory": (4, r"LDS|LDSM|STS|STSM|SHFL|LDG|LDGSTS|STG|RED|ATOMG?|LD|ST|ATOMS"),
    "float": (1, r"FADD|FMUL|FFMA|FADD2|FMUL2|FFMA2"),
    "integer": (2, r"[A-Z].*"),
}


class Loop(NamedTuple):
    """What a warp carries out for a tile."""

    instructions: int
    units: dict[str, int]  #: instructions by unit
    products: float  #: operations of a group of four warps on tensor cores

    def clocks(self, warps: int, blocks: int) -> float:
        """Of a multiprocessor, for a tile of each block."""
        quarter = warps / 4
        others = [quarter * self.instructions, *(quarter * UNITS[name][0] * n for name, n in self.units.items())]
        tensor = quarter * self.products / TENSOR
        return max(tensor, *others, (tensor + max(others)) / blocks)


def machine_code(found: Any) -> list[tuple[int, str]]:
    """Addresses and instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        text = subprocess.run([tool("cuobjdump"), "-sass", file.name], capture_output=True, text=True, check=True)
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", text.stdout)
    return [(int(address, 16), code.strip()) for address, code in lines]


def loops(code: list[tuple[int, str]]) -> list[Loop]:
    """The innermost loops with products, in the order of the code."""
    back = []
    for address, text in code:
        jump = re.search(r"BRA(?:\.\w+)* (?:!?U?P\d, )?(?:`\(.*\)|0x([0-9a-f]+))", text)
        if jump and jump[1] and int(jump[1], 16) < address:
            back.append((int(jump[1], 16), address))
    found = []
    for begin, end in sorted(back):
        if any(begin <= b and e < end for b, e in back if (b, e) != (begin, end)):
            continue
        body = [text for address, text in code if begin <= address <= end]
        loop = counted(body)
        if loop.products:
            found.append(loop)
    return found


def counted(body: list[str]) -> Loop:
    """Instructions by unit."""
    units, products = dict.fromkeys(UNITS, 0), 0.0
    for text in body:
        name = re.sub(r"^@!?U?P\w+\s+", "", text).split()[0]
        size = re.search(r"HGMMA\.(\d+)x(\d+)x(\d+)\.F32(\.TF32)?", text)
        if size:
            products += 2.0 * int(size[1]) * int(size[2]) * int(size[3]) * (2 if size[4] else 1)
            continue
        size = re.search(r"HMMA\.16(8)(4|8|16)\.F32(\.TF32)?", text)
        if size:  # of one warp
            products += 4 * 2.0 * 16 * int(size[1]) * int(size[2]) * (2 if size[3] else 1) / SYNCHRONOUS
            continue
        operation = name.split(".")[0]
        if operation.startswith(("U", "BAR", "WARP", "DEPBAR", "NOP", "BRA", "BSSY", "BSYNC", "R2UR", "S2")):
            continue  # of another unit, or none
        units[next(unit for unit, (_, names) in UNITS.items() if re.fullmatch(names, operation))] += 1
    return Loop(len(body), units, products)


def tiles(n: int, x: int, y: int, *, triangle: bool) -> tuple[int, int]:
    """Pure and mixed tiles of an image of the benchmark, on average over its images."""
    import torch

    from benchmarks.workload import label_maps, shape

    pure = mixed = 0
    for labels in label_maps(BATCH, shape(n)).flatten(1):
        ids = labels.sort().values
        starts, ends = torch.searchsorted(ids, ids), torch.searchsorted(ids, ids, right=True)
        for first in range(0, n, x):
            last = min(first + x, n) - 1
            for top in range(first if triangle else 0, n, y):
                bottom = min(top + y, n)
                whole = bottom - top == y and not (top <= last and first < bottom)
                apart = ends[last] <= top or bottom <= starts[first]
                alike = starts[last] <= top and bottom <= ends[first]
                if whole and (apart or alike):
                    pure += 1
                else:
                    mixed += 1
    return round(pure / BATCH), round(mixed / BATCH)


def usual(kernel: str, dtype: str, width: int, *, total: bool = False) -> Use:
    """The launch of a kernel for anchors that are the keys, with a bound; with the sum of logits or without."""
    assert width in WIDTHS
    for use in listed((dtype,), (width,), ARCH, everything=False):
        plain = use.options.get("SELF", "same") == "same" and not use.options.get("WEIGHTED")
        plain = plain and use.options.get("SHIFTED", True) and use.options.get("SUM", total) == total
        if use.kernel.endswith(f".{kernel}") and plain:
            return use
    raise LookupError(kernel)


def row(use: Use, n: int, *, arch: int = ARCH) -> dict[str, Any]:
    """What the model says of a kernel at n points in each of 8 images."""
    from benchmarks.case import Case
    from benchmarks.gpu_measure import floor_seconds

    found = compiled(use, arch)
    used: Resources = resources(found, arch)
    options = use.options
    kernel, width, warps = use.kernel.split(".")[1], options["D"], options["num_warps"]
    x, y = options.get("BLOCK", options.get("BLOCK_X")), options.get("BLOCK", options.get("BLOCK_Y"))
    pure_loop, mixed_loop = loops(machine_code(found))
    pure, mixed = tiles(n, x, y, triangle=kernel == "credit")
    inner = y // options["NARROW"]
    clocks = pure * pure_loop.clocks(warps, used.blocks) + mixed * inner * mixed_loop.clocks(warps, used.blocks)
    programs = BATCH * -(-n // x)
    waves = 1.0
    if kernel != "credit":  # whose programs are many and small
        slots = MULTIPROCESSORS * used.blocks
        waves = -(-programs // slots) * slots / programs
    seconds = BATCH * clocks * waves / (MULTIPROCESSORS * CLOCK)
    dtype, size = ("float32", 4) if use.dtype == "float32" else ("bfloat16", 2)  # float16 has bfloat16's ceilings
    read = BATCH * (pure + mixed) * y * width * size  # bytes of tiles of y
    floor = floor_seconds(CEILINGS, Case("local", BATCH, n, width, "cuda", dtype), kernel)
    formed = x * y * (2 if kernel == "credit" else 1)  # ordered pairs of a tile
    per_pair = 1e12 * pure_loop.clocks(warps, used.blocks) / (MULTIPROCESSORS * CLOCK) / formed
    return {
        "kernel": kernel, "sum": options.get("SUM", ""),
        "dtype": dtype, "n": n, "d": width, "tile": (x, y, warps, options["num_stages"]),
        "registers": used.registers, "stack": used.stack, "blocks": used.blocks, "instructions": pure_loop.instructions,
        **pure_loop.units, "mixed": mixed / (pure + mixed), "waves": 1 / waves, "ps_per_pair": per_pair,
        "ms": 1e3 * seconds, "share": floor / seconds, "l2_tb_s": read / seconds / 1e12,
    }  # fmt: skip


def line(found: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in found.values()]
    return "| " + " | ".join(cells) + " |"


def main(arguments: list[str] | None = None) -> int:
    """The table for the usual tiles, or for those of a list of launches; then the sums."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.roofline", description=__doc__)
    parser.add_argument("--points", type=int, default=6400)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--uses", type=Path, help="launches, as compile_kernels lists them, in place of the usual ones")
    options = parser.parse_args(arguments)
    if options.uses:
        uses = [Use(*x[1:]) for x in json.loads(options.uses.read_text())]
    else:
        kernels = ("credit", "rows", "weigh")
        uses = [usual(kernel, options.dtype, width) for width in options.widths for kernel in kernels]
        uses += [usual(kernel, options.dtype, width, total=True) for width in options.widths for kernel in kernels[:2]]
    total: dict[int, float] = {}
    for i, use in enumerate(uses):
        found = row(use, options.points)
        if not i:
            print(line(dict(zip(found, found, strict=True))) + "\n" + line(dict.fromkeys(found, "---")))
        print(line(found), flush=True)
        if found["kernel"] != "rows" and not found["sum"] and not options.uses:
            total[found["d"]] = total.get(found["d"], 0.0) + found["ms"]
    for width, milliseconds in total.items():
        print(f"credit and weigh at {options.points} x {width}: {milliseconds:.3f} ms in the model, no sums")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
