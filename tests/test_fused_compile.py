"""The kernels compiled ahead of time for GPUs that are not there: tensor cores, registers, spills, shared memory."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from benchmarks import roofline
from benchmarks.compile_kernels import SHARED, Resources, attempt, beyond, bounds, compiled, judged, resources
from benchmarks.kernel_uses import Use, kernel, listed, spread
from mmgl_losses.contrast import fused, pose

PRODUCTS = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
# Of the usual launches (anchors that are the keys, bounded): blocks of a multiprocessor at least, bytes of stack at most.
BOUNDS = {
    ("bfloat16", 64): {"credit": (2, 0), "rows": (4, 0), "weigh": (3, 0)},
    ("bfloat16", 128): {"credit": (2, 0), "rows": (4, 0), "weigh": (2, 0)},
    ("float32", 64): {"credit": (2, 0), "rows": (4, 0), "weigh": (2, 0)},
    ("float32", 128): {"credit": (1, 0), "rows": (2, 0), "weigh": (2, 0)},
}


CASES = (
    [(90, *case) for case in BOUNDS]
    + [(arch, "float16", 64) for arch in (80, 100)]
    + [(80, "float32", width) for width in (64, 128)]
)


@pytest.mark.parametrize(("arch", "dtype", "width"), CASES)
@pytest.mark.parametrize("kernel", ["credit", "rows", "weigh"])
def test_fits_and_uses_tensor_cores(kernel, arch, dtype, width):
    use = usual(kernel, dtype, width, arch)
    found = compiled(use, arch)
    used = resources(found, arch)
    products = PRODUCTS[80] if (kernel, dtype, width) == ("weigh", "float32", 128) else PRODUCTS[arch]
    assert found.asm["ptx"].count(products) >= 4, "products are not on tensor cores"
    assert 0 < used.registers <= 255
    assert used.shared <= (SHARED[arch] - 1) * 1024
    assert not beyond(use, used)
    blocks, stack = BOUNDS[dtype, width][kernel] if arch == 90 else (bounds(use)[0], 0)
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


def test_the_tightest_gradient_of_sm_80_spills_nothing():
    """Weighted keys in chunks, both sides at once, the widest features that have an aim: the most that a thread holds."""
    wanted = {"ROWS": True, "COLUMNS": True, "WEIGHTED": True, "SHIFTED": False, "WHOLE": False, "SELF": "same"}
    uses = [use for use in listed(("float16",), (128,), 80) if use.name == "weigh"]
    found = [use for use in uses if all(use.options[name] == value for name, value in wanted.items())]
    assert found
    used = resources(compiled(found[0], 80), 80)
    assert (used.stack, used.blocks) == (0, 2)


def test_every_kind_of_launch_is_listed():
    """Keys of three kinds; with weights or without; with a shift, a maximum, or both; sides of the backward; formulas."""
    uses, names = listed(("bfloat16",), (64,), 90), ("SELF", "WEIGHTED", "SHIFTED", "ROWS", "COLUMNS", "WHOLE", "UNIT")
    kinds = {}
    for use in uses:
        kinds.setdefault(use.kernel.split(".")[1], set()).add(tuple(use.options.get(name) for name in names[:5]))
    assert {name: len(found) for name, found in kinds.items()} == {
        "arrange": 2, "credit": 2, "rows": 12, "results": 6, "losses": 6, "factors": 2, "weigh": 20, "add_up": 1,
    }  # fmt: skip
    for ending, options in (
        ("arrange", {"SIDE": 3, "SORTED": 2, "MASKED": 2, "RANGES": 2, "SELF": 2, "UNIT": 2, "SHIFT": 2}),
        ("losses", {"NAME": 4, "CREDIT": 2, "AVERAGE": 2, "MASKED": 2}),
        ("rows", {"SUM": 2}),
        ("credit", {"SUM": 2}),
        ("weigh", {"WHOLE": 2, "UNIT": 2}),
    ):
        found = [use.options for use in uses if use.name == ending]
        assert {name: len({x[name] for x in found}) for name in options} == options, ending


def test_what_is_compiled_is_what_is_launched():
    """Every integer may be any, and every tensor begins at a round address: there is one kernel for each launch."""
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


def test_what_takes_too_much_is_beyond_its_bounds():
    """In half precision two blocks and nothing spilled, up to 128 numbers; tiles that are only tried may do worse."""
    use = usual("weigh", "bfloat16", 64, 90)
    good = Resources(168, 0, 49152, 3)
    assert beyond(use, good) == []
    assert beyond(use, good._replace(blocks=1, stack=8)) == ["1 blocks, at least 2", "8 bytes of stack, at most 0"]
    assert beyond(use._replace(tried=True), good._replace(blocks=1, stack=8)) == []
    single = usual("weigh", "float32", 64, 90)
    assert beyond(single, good._replace(blocks=1, stack=64)) == []
    assert beyond(single, good._replace(stack=72)) == ["72 bytes of stack, at most 64"]
    row = {"arch": 90, **good._replace(stack=8)._asdict()}
    assert judged(use, row | {"beyond": ["of other bounds"]}) == row | {"beyond": ["8 bytes of stack, at most 0"]}
    assert judged(single, row | {"beyond": ["of other bounds"]}) == row


def test_kernels_take_turns_before_variants():
    """However few of the launches are compiled, they are of as many kernels, types and widths as they can be."""
    uses = [(arch, use) for arch in (80, 90) for use in listed(("bfloat16", "float32"), (16, 64), arch)]
    found = spread([(90, uses[0][1]._replace(tried=True)), *uses])
    assert sorted(found[:-1], key=str) == sorted(uses, key=str)
    assert found[-1][1].tried
    kinds = [(arch, use.name, use.dtype, use.width) for arch, use in found[:-1]]
    assert len(set(kinds[: len(set(kinds))])) == len(set(kinds)) >= 2 * 2 * 2 * 5
    assert spread(uses[::-1]) == found[:-1]


def test_lists_go_to_another_environment(tmp_path):
    """A cache that is filled there holds what was compiled, and a report goes on where it ends."""
    path, out, cache = tmp_path / "uses.json", tmp_path / "out.jsonl", tmp_path / "cache"
    uses = [use for use in listed(("bfloat16",), (64,), 90, everything=False) if use.name == "factors"]
    assert len(uses) == 2
    path.write_text(json.dumps([(90, *use) for use in uses]))

    def run(*more: str) -> str:
        command = [sys.executable, "-m", "benchmarks.compile_kernels", "--uses", path, "--cache", cache, "--out", out]
        done = subprocess.run([*command, "--architectures", "90", *more], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "1 of 1 kernels compile, 0 beyond their bounds" in run("--first", "1")
    assert json.loads(out.read_text())["stack"] == 0
    assert any(cache.glob("*/factors.cubin"))
    before = out.read_text()
    said = run()
    assert "2 of 2 kernels compile" in said
    assert before not in said  # not compiled again
    assert out.read_text().startswith(before)
    assert len(out.read_text().splitlines()) == 2
    assert run().startswith("2 of 2 kernels compile")


def test_a_cache_filled_without_tensors_is_found_with_them(tmp_path):
    """What stands for tensors gives the keys that tensors give."""
    import triton

    use = next(use for use in listed(("bfloat16",), (64,), 90, everything=False) if use.name == "factors")
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path)
        compiled(use, 90)
        before = {*tmp_path.glob("*")}
        tensors = [torch.empty(64, dtype=getattr(torch, x)) if isinstance(x, str) else x for x in use.arguments]
        kernel(use.kernel).device_caches.clear()
        kernel(use.kernel).warmup(*tensors, grid=(1,), **use.options)
        assert before == {*tmp_path.glob("*")} != set()


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
