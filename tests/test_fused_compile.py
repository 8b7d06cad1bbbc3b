"""The kernels compiled ahead of time for GPUs that are not there: tensor cores, registers, spills, shared memory."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton

CASES = [
    (kernel, dtype, width)
    for kernel in ("credit", "weigh")
    for dtype, width in ((torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float32, 64))
] + [("rows", torch.bfloat16, 128)]
TARGETS = {80: ("mma.sync", 99), 90: ("wgmma.mma_async", 227), 100: ("tcgen05.mma", 227)}  # KiB of a program
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def compile_for(arch: int, kernel: str, dtype: torch.dtype, width: int, **options):
    """One kernel as `launch` would have it, for anchors that are the keys."""
    from mmgl_losses.contrast.fused import backward_kernels, forward_kernels, launch

    cut = launch.tile(kernel, dtype, width, arch // 10)
    function = backward_kernels.weigh if kernel == "weigh" else getattr(forward_kernels, kernel)
    features, integers = ("p_x", "p_y", "p_z"), ("p_lo", "p_hi", "p_itself", "p_count")
    constants = {
        "D": width, "WIDTH": width, "BLOCK": cut.x, "BLOCK_X": cut.x, "BLOCK_Y": cut.y, "SELF": "same", "ROWS": True,
        "COLUMNS": True, "SYMMETRIC": True, "WEIGHTED": False, "SHIFTED": True, "PRECISION": launch.precision(dtype),
    } | options  # fmt: skip
    signature, fixed, aligned = {}, {}, {}
    for i, name in enumerate(function.arg_names):
        if name in constants:
            signature[name], fixed[(i,)] = "constexpr", constants[name]
        elif name.startswith("p_"):
            signature[name] = "*" + (NAMES[dtype] if name in features else "i64" if name in integers else "fp32")
        else:
            signature[name] = "fp32" if name == "scale" else "i32"
        if name.startswith("p_") or name.endswith("padded"):
            aligned[(i,)] = [["tt.divisibility", 16]]
    source = triton.compiler.ASTSource(fn=function, signature=signature, constexprs=fixed, attrs=aligned)
    target = triton.backends.compiler.GPUTarget("cuda", arch, 32)
    return triton.compile(source, target=target, options={"num_warps": cut.warps, "num_stages": cut.stages}), cut


def resources(compiled, folder: Path) -> dict[str, int]:
    """Registers, stack (where spills go) and so on, as the assembler reports them."""
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    report = subprocess.run([tool, "-res-usage", binary], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", report)}


@pytest.mark.parametrize("arch", TARGETS)
@pytest.mark.parametrize(("kernel", "dtype", "width"), CASES)
def test_fits_and_uses_tensor_cores(arch, kernel, dtype, width, tmp_path):
    compiled, cut = compile_for(arch, kernel, dtype, width)
    instruction, limit = TARGETS[arch]
    used = resources(compiled, tmp_path)
    assert compiled.asm["ptx"].count(instruction) >= 4, "products are not on tensor cores"
    assert used["STACK"] == 0, "registers are spilled"
    assert 0 < used["REG"] <= 255
    assert used["REG"] * cut.warps * 32 <= 65536, "one program does not fit a multiprocessor"
    assert compiled.metadata.shared <= limit * 1024


@pytest.mark.parametrize(("kernel", "options"), [
    ("credit", {"WEIGHTED": True}),
    ("rows", {"SHIFTED": False}),
    ("weigh", {"COLUMNS": False, "SYMMETRIC": False, "SELF": "given"}),
    ("weigh", {"ROWS": False, "SYMMETRIC": False, "SELF": "given"}),
])  # fmt: skip
def test_other_paths_use_tensor_cores_too(kernel, options, tmp_path):
    compiled, _ = compile_for(90, kernel, torch.bfloat16, 64, **options)
    used = resources(compiled, tmp_path)
    assert compiled.asm["ptx"].count("wgmma.mma_async") >= 4
    assert used["STACK"] <= 32
