"""How work is cut for a device: tiles of pairs, numbers of programs, and the types that meet in a product."""

from typing import NamedTuple

import torch

VECTOR = 256  # elements of a program that works on vectors
PROGRAMS = 256  # programs that fill a large device; fewer are cut along the other side too
WAVES = 8  # times that many programs share the forward's work, so that none is left alone at the end
NARROW = 32  # columns of a mixed tile at most: what masks need is held in registers for each
FEW = 2048  # points of a side: up to here launches cost more than work, so places are counted and nothing is cut


class Tile(NamedTuple):
    """How a kernel cuts its work: `x` rows against `y` columns, powers of two of at least 16."""

    x: int
    y: int
    warps: int
    stages: int


def tile(kernel: str, dtype: torch.dtype, width: int, major: int) -> Tile:
    """The tile of the kernel "credit" (a square), "rows" or "weigh".

    For operands of a type and a padded width on a device of compute capability `major`. In float32 a thread holds three
    products' worth of the rows of x in registers; at 9 tensor cores read y from shared memory, and products of 64 rows
    leave room for that, but not for a wide gradient.
    """
    if dtype == torch.float32:
        if major == 9 and width <= (64 if kernel == "weigh" else 128):
            return Tile(64, 64 if kernel == "credit" else 32, 4, 2)
        x = 32 if width <= 64 else 16
        return Tile(x, x if kernel == "credit" else 32, 4, 2 if width <= 128 else 1)
    if width > 128:
        return Tile(64, 64, 8 if kernel == "weigh" else 4, 2)
    if kernel == "credit" and major == 9:  # elsewhere what columns need is too much for a thread
        return Tile(128, 128, 4, 2)
    if kernel == "weigh" and major == 8 and width == 128:  # 64 columns would spill there
        return Tile(64, 32, 4, 2)
    return Tile(64, 64, 4, 2)


def cut_for(kernel: str, dtype: torch.dtype, width: int, device: torch.device) -> Tile:
    """The tile of a kernel for points of `width` numbers on a device."""
    return tile(kernel, dtype, padded_width(width), major_of(device))


def registers(shifted: bool, device: torch.device) -> int | None:
    """What a thread of `weigh` may take, where the assembler would spill some to make room for another block."""
    return None if shifted and major_of(device) < 10 else 255


def padding(dtype: torch.dtype, width: int, device: torch.device) -> int:
    """Rows that fill whole tiles of every kernel."""
    return max(max(cut_for(kernel, dtype, width, device)[:2]) for kernel in ("credit", "rows", "weigh"))


def major_of(device: torch.device) -> int:
    """The first number of a device's compute capability."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 9


def narrow(columns: int, dtype: torch.dtype) -> int:
    """The columns of a mixed tile: half as many where operands are kept in three parts."""
    return min(NARROW // 2 if dtype == torch.float32 else NARROW, columns)


def precision(dtype: torch.dtype) -> str:
    """How tensor cores multiply: float32 as three products of tf32, which keeps float32's accuracy."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def gain(dtype: torch.dtype) -> float:
    """What keeps the factors of pairs, which are at most 4, away from the denormal numbers of a type."""
    return 2.0**13 if dtype == torch.float16 else 1.0


def ceil(a: int, b: int) -> int:
    """Quotient, rounded up."""
    return -(-a // b)


def padded_width(width: int) -> int:
    """The least power of two that holds a feature and that a product can run over."""
    return 1 << max(4, (width - 1).bit_length())


def chunks(programs: int, rows: int, other: int, columns: int) -> int:
    """Into how many parts to cut the other side, so that there are enough programs; few rows are not worth a launch."""
    if max(rows, other) <= FEW:
        return 1
    return max(1, min(PROGRAMS // max(programs, 1), ceil(other, columns)))
