"""The kernels compiled ahead of time for GPUs that are not there: tensor cores, registers, spills, shared memory."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import roofline
from benchmarks.compile_kernels import SHARED, Resources, Use, attempt, compiled, listed, resources
from mmgl_losses.contrast import fused, pose

PRODUCTS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
# Of the usual launches (anchors that are the keys, bounded): blocks of a multiprocessor at least, bytes of stack at most.
BOUNDS = {
    ("bfloat16", 64): {"credit": (2, 0), "rows": (4, 0), "weigh": (3, 0)},
    ("bfloat16", 128): {"credit": (2, 0), "rows": (4, 0), "weigh": (2, 0)},
    ("float32", 64): {"credit": (1, 0), "rows": (1, 0), "weigh": (1, 0)},
}


CASES = [(90, *case) for case in BOUNDS] + [(arch, "float16", 64) for arch in (80, 100)] + [(80, "float32", 64)]


@pytest.mark.parametrize(("arch", "dtype", "width"), CASES)
@pytest.mark.parametrize("kernel", ["credit", "rows", "weigh"])
def test_fits_and_uses_tensor_cores(kernel, arch, dtype, width):
    use = usual(kernel, dtype, width, arch)
    found = compiled(use, arch)
    used = resources(found, arch)
    assert found.asm["ptx"].count(PRODUCTS[arch]) >= 4, "products are not on tensor cores"
    assert 0 < used.registers <= 255
    assert used.shared <= (SHARED[arch] - 1) * 1024
    blocks, stack = BOUNDS[dtype, width][kernel] if arch == 90 else (1, 0)
    assert used.blocks >= blocks
    assert used.stack <= stack


def usual(kernel: str, dtype: str, width: int, arch: int) -> Use:
    """What is launched for anchors that are the keys, with a bound."""
    found = [
        use
        for use in listed((dtype,), (width,), arch, everything=False)
        if use.kernel.endswith(f".{kernel}") and use.options.get("SELF", "same") == "same"
        and use.options.get("SHIFTED", True) and not use.options.get("WEIGHTED") and not use.options.get("SUM")
    ]  # fmt: skip
    assert found
    return found[0]


def test_every_kind_of_launch_is_listed():
    """Keys of three kinds; with weights or without; with a shift, a maximum, or both; sides of the backward; formulas."""
    uses, names = listed(("bfloat16",), (64,), 90), ("SELF", "WEIGHTED", "SHIFTED", "ROWS", "COLUMNS", "WHOLE", "UNIT")
    kinds = {}
    for use in uses:
        kinds.setdefault(use.kernel.split(".")[1], set()).add(tuple(use.options.get(name) for name in names[:5]))
    assert {name: len(found) for name, found in kinds.items()} == {
        "arrange": 2, "credit": 2, "rows": 12, "results": 6, "losses": 6, "factors": 2, "weigh": 20, "add_up": 1,
    }  # fmt: skip
    for kernel, options in (
        ("arrange", {"SIDE": 3, "SORTED": 2, "MASKED": 2, "RANGES": 2, "SELF": 2, "UNIT": 2, "SHIFT": 2}),
        ("losses", {"NAME": 4, "CREDIT": 2, "AVERAGE": 2, "MASKED": 2}),
        ("rows", {"SUM": 2}),
        ("credit", {"SUM": 2}),
        ("weigh", {"WHOLE": 2, "UNIT": 2}),
    ):
        found = [use.options for use in uses if use.kernel.endswith(f".{kernel}")]
        assert {name: len({x[name] for x in found}) for name in options} == options, kernel


def test_what_is_compiled_is_what_is_launched():
    """Every integer may be any, and every tensor begins at a round address: there is one kernel for each launch."""
    from benchmarks.compile_kernels import kernel

    for use in listed(("bfloat16",), (64,), 90, everything=False):
        function = kernel(use.kernel)
        for parameter, value in zip(function.params, use.arguments, strict=False):
            if isinstance(value, int):
                free = parameter.do_not_specialize or (parameter.name.endswith("padded") and value % 16 == 0)
                free = free or parameter.do_not_specialize_on_alignment  # a stride: whether it is 1 matters
                assert free, f"{use.kernel}: {parameter.name}"


def test_a_launch_that_does_not_compile_is_a_row():
    use = usual("rows", "bfloat16", 64, 90)
    row = attempt(Use(use.kernel, use.arguments, use.options | {"BLOCK_X": 48}), 90)
    assert "failed" in row
    assert row["arch"] == 90


def test_lists_go_to_another_environment(tmp_path):
    """And a cache that is filled there holds what was compiled."""
    path, out, cache = tmp_path / "uses.json", tmp_path / "out.jsonl", tmp_path / "cache"
    use = next(use for use in listed(("bfloat16",), (64,), 90, everything=False) if use.kernel.endswith("factors"))
    path.write_text(json.dumps([(90, *use)]))
    command = [sys.executable, "-m", "benchmarks.compile_kernels", "--uses", path, "--cache", cache, "--out", out]
    done = subprocess.run([*command, "--architectures", "90"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 kernels compile" in done.stdout
    assert json.loads(out.read_text())["stack"] == 0
    assert any(cache.glob("*/factors.cubin"))


def test_blocks_of_a_multiprocessor():
    """65,536 registers in units of 256 for a warp; 228 KiB, of which each block takes one more than it asks for."""

    found = SimpleNamespace(asm={"cubin": b""}, metadata=SimpleNamespace(num_warps=4, shared=50 * 1024))
    with pytest.MonkeyPatch.context() as patch:
        said = SimpleNamespace(stdout="REG:128 STACK:16 SHARED:0")
        patch.setattr(subprocess, "run", lambda *args, **kwargs: said)
        assert resources(found, 90) == Resources(128, 16, 50 * 1024, 4)
        found.metadata.shared = 100 * 1024
        assert resources(found, 90).blocks == 2


def test_the_model_counts_what_a_loop_holds():
    code = [
        (0x00, "MOV R1, R2"),
        (0x10, "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT"),
        (0x20, "@!P0 MUFU.EX2 R1, R1"),
        (0x30, "FMUL R1, R1, R2"),
        (0x40, "SHFL.BFLY PT, R1, R1, 0x1, 0x1f"),
        (0x50, "ISETP.NE.AND P1, PT, R1, RZ, PT"),
        (0x60, "@P0 BRA 0x10"),
        (0x70, "BRA 0x70"),
    ]
    (loop,) = roofline.loops(code)
    assert loop.units == {"exp": 1, "memory": 1, "float": 1, "integer": 1}
    assert loop.instructions == 6
    assert loop.products == 2 * 64 * 64 * 16
    tensor = loop.products / roofline.TENSOR
    assert loop.clocks(4, 1) == tensor + 8
    assert loop.clocks(4, 4) == max(tensor, 8, (tensor + 8) / 4)


def test_tiles_of_the_model_cover_all_pairs():
    pure, mixed = roofline.tiles(400, 64, 64, triangle=False)
    assert pure + mixed == 49
    half = roofline.tiles(400, 64, 64, triangle=True)
    assert sum(half) == 28


def test_rows_that_are_only_keys_or_only_anchors_make_two_sides():
    """Kernels for one side take rows that are both or neither."""
    z, ids, mask = torch.zeros(1, 5, 4), torch.zeros(1, 5), torch.arange(5)[None] < 3
    rest = {"temperature": 1.0, "bound": 1.0, "precision": torch.float32}
    for anchors, keys, together in ((None, None, True), (mask, None, True), (mask, mask, True), (None, mask, False)):
        problem = pose(z, ids, anchor_mask=anchors, key_mask=keys, **rest)
        assert (fused.apart(problem) is problem) == together
    view = mask.view(1, 5)
    assert fused.apart(problem := pose(z, ids, anchor_mask=mask, key_mask=view, **rest)) is problem
    parted = fused.apart(pose(z, ids, anchor_mask=~mask, key_mask=mask, **rest))
    assert parted.keys is parted.anchors
    assert parted.self_index.tolist() == [[0, 1, 2, 3, 4]]
