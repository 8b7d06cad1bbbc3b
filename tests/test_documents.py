"""Every block of Python in the README and the pages runs, from top to bottom of its page, and prints what the page shows."""

import ast
import json
import math
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from matplotlib import pyplot as plt

from mmgl_losses import plugins
from tests import first_network

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs").glob("*/*.md"))]
PAGES = [page for page in PAGES if "_build" not in page.parts]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
SCRIPTS = [path for folder in ("gallery", "lessons") for path in sorted((ROOT / "docs" / folder).glob("plot_*.py"))]
HOME = "https://github.com/mmgl-losses/mmgl-losses"


def blocks(page: Path) -> list[tuple[str, str | None]]:
    """Each block of Python, with the block of text behind it, if that follows at once: what it prints."""
    pattern = r"^```python\n(.*?)^```\n+(?:^```text\n(.*?)^```)?"
    return [(code, shown or None) for code, shown in re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)]


def alike(shown: str, printed: str) -> bool:
    """Equal line by line, up to space; a line of ``...`` is any lines.

    Decimal numbers and shares may differ as those of a short training do between two kinds of CPU.
    """
    number = r"-?\d+\.\d+|-?\d+(?=%)"

    def same(a: str, b: str) -> bool:
        words, others = a.split(), b.split()
        return len(words) == len(others) and all(map(same_word, words, others))

    def same_word(a: str, b: str) -> bool:
        if a == b:
            return True
        if re.sub(number, "#", a) != re.sub(number, "#", b):
            return False
        pairs = zip(re.findall(number, a), re.findall(number, b), strict=True)
        return all(math.isclose(float(x), float(y), rel_tol=0.05, abs_tol=5 if "%" in a else 0.05) for x, y in pairs)

    def match(rows: list[str], lines: list[str]) -> bool:
        if not rows:
            return not lines
        if rows[0].strip() == "...":
            return any(match(rows[1:], lines[i:]) for i in range(len(lines) + 1))
        return bool(lines) and same(rows[0], lines[0]) and match(rows[1:], lines[1:])

    return match(shown.strip().splitlines(), printed.strip().splitlines())


@pytest.fixture
def page_module(tmp_path, monkeypatch) -> ModuleType:
    """A real module, so that what a page defines can be pickled, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.setattr(plugins, "_registered", {"loss": {}, "head": {}})
    return module


@pytest.mark.filterwarnings("ignore:.*does not have many workers")  # Lightning, of the short runs of a page
@pytest.mark.filterwarnings("ignore:.*isinstance\\(treespec, LeafSpec\\)")
@pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval")
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_run_and_print_what_is_shown(page, page_module, capsys):
    names = vars(page_module)
    for number, (block, shown) in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)
        printed = capsys.readouterr().out
        assert "nan" not in printed
        assert shown is None or alike(shown, printed), f"block {number + 1} of {page.name} prints\n{printed}"
    if isinstance(names.get("loss"), torch.Tensor):
        assert names["loss"].isfinite()


def test_there_are_blocks_and_outputs():
    found = [block for page in PAGES for block in blocks(page)]
    assert len(found) >= 40
    assert sum(shown is not None for _, shown in found) >= 5


@pytest.mark.parametrize(
    ("shown", "printed", "equal"),
    [
        ("a 1.50", "a    1.51", True),
        ("a 1.50", "a 1.70", False),
        ("(0% done)", "(-0% done)", True),
        ("(20% done)", "(30% done)", False),
        ("a 3", "a 4", False),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nb\nc", False),
        ("a", "a\nb", False),
    ],
)
def test_outputs_are_compared(shown, printed, equal):
    assert alike(shown, printed) == equal


def test_links_of_the_readme_work_on_the_package_index():
    """They are absolute, and those into this repository lead to a file of it."""
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert links
    for link in links:
        assert link.startswith("https://"), link
        raw = HOME.replace("github.com", "raw.githubusercontent.com") + "/main/"
        for base in (f"{HOME}/blob/main/", f"{HOME}/tree/main/", raw):
            if link.startswith(base):
                assert (ROOT / link.removeprefix(base).partition("#")[0]).exists(), link


def test_one_address_of_the_repository():
    for name in ("pyproject.toml", "CITATION.cff", "docs/conf.py", "README.md"):
        assert HOME in (ROOT / name).read_text(), name


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 110


def code_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, page_module, monkeypatch):
    """All cells in order, but for the one that installs; the tutorials of the documentation run the same code."""
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    for number, cell in enumerate(code_cells(notebook)):
        code = "\n".join(line for line in cell.splitlines() if not line.startswith("%"))
        code = re.sub(r"^STEPS = .*$", "STEPS = 2, 2, 2", code, flags=re.MULTILINE)
        exec(compile(code, f"{notebook.name}, cell {number + 1}", "exec"), vars(page_module))


def test_notebooks_are_made_from_the_tutorials():
    sphinx_gallery = pytest.importorskip("sphinx_gallery", reason="of the environment of the documentation")
    assert sphinx_gallery
    from docs import notebooks

    made = notebooks.make()
    assert {path.name for path in NOTEBOOKS} == made.keys()
    for path in NOTEBOOKS:
        assert json.loads(path.read_text()) == json.loads(made[path.name]), f"{path.name}: run `make notebooks`"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_runs_on_its_own(script):
    """Whoever downloads it has the package, torch and matplotlib, and no file of this repository."""
    wanted = set()
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.Import):
            wanted |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            wanted.add(str(node.module))
    others = {name.partition(".")[0] for name in wanted} - sys.stdlib_module_names
    assert others <= {"matplotlib", "mmgl_losses", "torch"}, others


def test_the_commands_for_a_new_user_can_be_followed():
    """`python -m tests.first_network` runs them as they are on the page, with what is here for what is published."""
    commands = first_network.commands(first_network.PAGE.read_text())
    made = [first_network.here(command, Path("our.whl"), "torch==2") for command in commands]
    script = ROOT / "examples" / "three_stages.py"
    assert made == [
        f"{sys.executable} -m venv first",
        "first/bin/pip install our.whl torch==2 matplotlib",
        f"cp {script} .",
        "first/bin/python three_stages.py --seeds 1",
    ]
    assert script.exists()


def functions(source: str) -> dict[str, str]:
    return {node.name: ast.dump(node) for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}


def test_the_first_tutorial_has_the_data_of_the_example():
    example = functions((ROOT / "examples" / "three_stages.py").read_text())
    tutorial = functions((ROOT / "docs" / "lessons" / "plot_1_three_stages.py").read_text())
    assert {"patient", "augment", "dice"} <= tutorial.keys()
    assert all(tutorial[name] == example[name] for name in ("patient", "augment", "dice"))
