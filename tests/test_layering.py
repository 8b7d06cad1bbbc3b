"""Imports go one way, importing costs nothing it need not, and modules stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mmgl_losses

ROOT = Path(mmgl_losses.__file__).parent
# What the modules of each room may import of the package; a module in no room is at the front, and may import all.
RULES = {
    "checks": (),
    "distributed": ("checks",),
    "sampling": ("checks",),
    "contrast": ("checks", "contrast"),
    "losses": ("checks", "contrast", "distributed", "losses", "sampling"),
    "networks": ("checks", "networks", "sampling"),
    "lightning": ("checks", "networks", "sampling"),
    "testing": ("checks", "contrast", "losses", "sampling", "testing"),
}
FRONT = {"", "__main__", "functional", "plugins"}
ENGINES = ("contrast.reference", "contrast.tiled", "contrast.fused", "contrast.native")
ELSEWHERE = {
    "triton": "contrast.fused",
    "matplotlib": "networks.stages",
    "lightning": "lightning",
}  # packages that one room knows, on first use


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules that a file imports anywhere: those of the package without its name in front, others by their own."""
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


def inside(path: Path) -> set[str]:
    return {n.removeprefix("mmgl_losses").removeprefix(".") for n in imports(path) if n.split(".")[0] == "mmgl_losses"}


def room(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_go_one_way(module):
    assert room(module) in RULES or module in FRONT, f"{module!r} is in no room"
    for other in inside(modules()[module]):
        if module in FRONT:
            assert other != "" or module == "__main__", f"{module} imports the face of the package"
        else:
            assert room(other) in RULES[room(module)], f"{module} imports {other}"


def test_there_is_no_circle():
    """Not between two modules either; a package stands for what its `__init__` imports."""
    graph = {name: inside(path) for name, path in modules().items()}

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        for other in graph[name] - {name}:
            if other not in done:
                visit(other, [*way, name])
        done.add(name)

    done: set[str] = set()
    for name in graph:
        visit(name, [])


def test_engines_know_nothing_of_one_another():
    for module, path in modules().items():
        own = next((engine for engine in ENGINES if module.startswith(engine)), None)
        for other in inside(path) if own else ():
            assert not any(other.startswith(engine) for engine in ENGINES if engine != own), f"{module} imports {other}"


@pytest.mark.parametrize("module", sorted(modules()))
def test_what_is_imported_from_elsewhere(module):
    allowed = {"mmgl_losses", "torch", "einops", "typing_extensions", *sys.stdlib_module_names}
    allowed |= {package for package, home in ELSEWHERE.items() if module.startswith(home)}
    outside = {name.split(".")[0] for name in imports(modules()[module])} - allowed
    assert not outside, f"{module} imports {outside}"


def test_pairs_are_summed_in_one_place():
    """Nothing outside of the primitive multiplies embeddings with embeddings."""
    products = {"matmul", "mm", "bmm", "baddbmm", "addmm", "einsum", "cdist", "logsumexp"}
    for module, path in modules().items():
        if room(module) in ("contrast", "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            assert not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.MatMult), module
            if isinstance(node, ast.Attribute) and node.attr in products:
                assert (module, node.attr) == ("losses.dice", "logsumexp"), f"{module}: {node.attr}"


def test_modules_are_small():
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: n for name, n in lengths.items() if n > 350} == {}
    assert sorted(lengths.values())[len(lengths) // 2] <= 180
    assert len({room(name) for name in lengths} - {"__main__"}) <= 11  # ten rooms and the face


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
    assert len(mmgl_losses.__all__) >= 15
    for name in mmgl_losses.__all__:
        assert (getattr(mmgl_losses, name).__doc__ or "").strip(), name
