"""The example's imports: one way between its rooms, no circle, and of the package its public names alone."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2] / "examples" / "mmwhs"
ROOMS = {"files": 0, "messages": 0, "data": 1, "train": 2, "study": 3}  # what a room may import has no higher number
PUBLIC = {"mmgl_losses", "mmgl_losses.functional", "mmgl_losses.plugins", "mmgl_losses.sampling"}


def imported(path: Path) -> list[tuple[str, str]]:
    """Module and name of everything that a file imports, wherever it does."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            start = "examples.mmwhs.data.phantom." if node.level else ""  # the phantom alone names its neighbours so
            found += [(f"{start}{node.module}", alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
    return found


def modules() -> dict[str, Path]:
    """All modules of the example, by their dotted names."""
    return {
        "examples.mmwhs." + ".".join(path.relative_to(ROOT).with_suffix("").parts): path
        for path in ROOT.rglob("*.py") if path.name != "__init__.py"
    }  # fmt: skip


def graph() -> dict[str, set[str]]:
    """Module -> the modules of the example that it imports."""
    known = modules()
    return {
        name: {each for base, leaf in imported(path) for each in (base, f"{base}.{leaf}") if each in known}
        for name, path in known.items()
    }


def test_rooms_import_one_way() -> None:
    found = graph()
    assert sum(map(len, found.values())) > 100

    def room(name: str) -> int:
        return ROOMS.get(name.split(".")[2], 4)

    assert [(one, other) for one, others in found.items() for other in others if room(other) > room(one)] == []


def test_no_module_imports_itself_by_a_detour() -> None:
    left = graph()
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert list(left) == []


def test_a_signal_is_heard_from_the_start() -> None:
    """Its handler is there before anything that takes long to import."""
    code = "import sys, examples.mmwhs.__main__; print(*sys.modules)"
    there = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT.parents[1], capture_output=True, text=True, check=True
    )
    assert "examples.mmwhs.__main__" in there.stdout.split()
    assert not {"rich", "jsonargparse", "numpy", "nibabel", "torch"} & set(there.stdout.split())


def test_of_the_package_only_public_names_are_used() -> None:
    used = {(base, name) for path in modules().values() for base, name in imported(path) if base.startswith("mmgl_")}
    assert used
    assert {base for base, _ in used} <= PUBLIC
    assert not any(name.startswith("_") or name == "checks" for _, name in used)


def test_a_module_is_short() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in modules().items()}
    assert {name: length for name, length in lengths.items() if length > 350} == {}
