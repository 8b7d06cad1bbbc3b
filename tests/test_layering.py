"""Imports go one way, importing costs nothing it need not, and modules stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmgl_losses

ROOT = Path(mmgl_losses.__file__).parent
# Each layer may import those before it, and nothing of its own.
LAYERS = [
    {"checks"},
    {"sampling", "contrast.pairs", "contrast.halves", "distributed", "multiscale"},
    {"networks.axes", "networks.stages.table", "networks.unet"},
    {"networks.operation"},
    {"networks.rules"},
    {"networks.recorder"},
    {"networks.trace"},
    {
        "contrast.reference",
        "contrast.sums",
        "contrast.tiled.shift",
        "contrast.fused.forward",
        "networks.heads",
        "networks.hooks",
        "networks.stages.heads",
        "networks.stages.plot",
    },
    {"contrast.tiled.strips", "contrast.tiled.tiles", "contrast.fused.backward"},
    {"contrast.tiled", "contrast.fused.launch"},
    {"contrast.fused"},
    {"contrast.operation"},
    {"contrast.classes"},
    {"contrast", "networks.taps", "networks.stages.path"},
    {"networks.attach", "networks.stages.choice"},
    {"networks.stages.discover"},
    {"networks.stages"},
    {"networks"},
    {"formulas", "dice"},
    {"functional", "diagnostics"},
    {"losses"},
    {"plugins"},
    {""},
    {"testing.laws"},
    {"testing.cases", "testing.heads", "testing.formulas"},
    {"testing.losses"},
    {"testing"},
]
FOLDERS = {"contrast", "networks", "testing"}  # whose modules have layers of their own


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of the package that a file imports, and top-level names of other packages."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name.removeprefix("mmgl_losses.") in modules() else str(node.module))
    return found


def layer(module: str) -> int:
    places = [i for i, names in enumerate(LAYERS) if module in names or module.split(".")[0] in names - FOLDERS]
    assert len(places) == 1, f"{module!r} has no layer: give it one in LAYERS"
    return places[0]


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_one_way(module):
    for name in imports(modules()[module]):
        if name.split(".")[0] != "mmgl_losses":
            continue
        other = name.removeprefix("mmgl_losses").removeprefix(".")
        inside = module.split(".")[0] == "checks" == other.split(".")[0]
        assert inside or layer(other) < layer(module), f"{module or 'mmgl_losses'} imports {other}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_what_is_imported(module):
    allowed = {"mmgl_losses", "torch", *sys.stdlib_module_names}
    if module.startswith("contrast.fused"):
        allowed |= {"triton"}
    if module in ("networks.stages.plot", "networks.stages.discover"):
        allowed |= {"matplotlib"}  # on first use, and as a name of types
    outside = {name.split(".")[0] for name in imports(modules()[module])} - allowed
    assert not outside, f"{module} imports {outside}"


def test_modules_are_small():
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in lengths.items() if n > 350} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 180


def test_import_is_quiet_and_light():
    """A fresh process: no output, no warnings, no Triton, no compiler."""
    code = (
        "import sys, mmgl_losses; "
        "print([m for m in ('triton', 'torch._dynamo', 'torch._inductor', 'numpy.testing', 'matplotlib') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""


def test_every_public_name_is_documented():
    public = [name for name in vars(mmgl_losses) if name[0] != "_" and name not in modules()]
    assert len(public) >= 15
    for name in public:
        assert (getattr(mmgl_losses, name).__doc__ or "").strip(), name
