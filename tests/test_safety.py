"""No file of this repository runs what it reads: the sources are searched for every way to do so."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path
    for folder in ("mmgl_losses", "examples", "benchmarks", "docs", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "_build" not in path.parts
)
# What runs this repository's own pages, and what pickles what it has made itself a moment before.
ALLOWED = {
    "tests/test_documents.py": {"exec", "compile"},
    "tests/networks/elsewhere.py": {"exec", "compile"},
    "tests/networks/elsewhere_nnunet.py": {"torch.load", "pickles"},
    "tests/networks/trial.py": {"exec"},
    "mmgl_losses/testing/heads.py": {"pickle.loads"},
    "mmgl_losses/testing/losses.py": {"pickle.loads"},
    "tests/test_losses.py": {"pickle.loads"},
    "tests/test_flow.py": {"exec"},
    "tests/test_stages.py": {"exec"},
    "tests/test_taps.py": {"torch.load", "pickles"},
    "tests/ways/test_loops.py": {"pickle.loads"},
}
RUNS = {"eval", "exec", "compile", "__import__"}
RUNS |= {
    f"{module}.{name}"
    for module in ("pickle", "dill", "cloudpickle", "marshal")
    for name in ("load", "loads", "Unpickler")
}
RUNS |= {
    "shelve.open",
    "joblib.load",
    "os.system",
    "os.popen",
    "tempfile.mktemp",
    "pandas.read_pickle",
    "pd.read_pickle",
}
RUNS |= {
    f"yaml.{name}" for name in ("load", "load_all", "full_load", "unsafe_load", "Loader", "FullLoader", "UnsafeLoader")
}


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of a name or an attribute."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def constant(call: ast.Call, name: str) -> object:
    """The value of a keyword, where it is written out."""
    return next((k.value.value for k in call.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def dangers(source: str) -> Iterator[str]:
    """What in a source could run what it reads."""
    tree = ast.parse(source)
    real: dict[str, str] = {}  # name here -> name there
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            real |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            real |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, dot, rest = dotted(node.func).partition(".")
        name = real.get(first, first) + dot + rest
        if name in RUNS:
            yield name
        if name == "torch.load" and constant(node, "weights_only") is not True:
            yield "torch.load"
        if rest.endswith("load_from_checkpoint"):
            yield "load_from_checkpoint"
        if any(k.arg == "ckpt_path" for k in node.keywords) and constant(node, "weights_only") is not True:
            yield "ckpt_path"
        if name.startswith("subprocess.") and constant(node, "shell") not in (None, False):
            yield "shell"
        if constant(node, "allow_pickle") or constant(node, "weights_only") is False:
            yield "pickles"
        if name.endswith("jinja2.Environment") and constant(node, "autoescape") is not True:
            yield "autoescape"


def test_no_source_runs_what_it_reads() -> None:
    """And every exception is still needed."""
    found = {str(path.relative_to(ROOT)): set(dangers(path.read_text(encoding="utf-8"))) for path in SOURCES}
    assert len(found) > 150
    assert {name: names for name, names in found.items() if names} == ALLOWED


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch; torch.load(p)", "torch.load"),
        ("import torch as t; t.load(p, weights_only=x)", "torch.load"),
        ("from torch import load; load(p, weights_only=False)", "torch.load"),
        ("trainer.fit(m, ckpt_path=p)", "ckpt_path"),
        ("Net.load_from_checkpoint(p)", "load_from_checkpoint"),
        ("import yaml; yaml.load(t, Loader=yaml.Loader)", "yaml.load"),
        ("from yaml import unsafe_load as safe; safe(t)", "yaml.unsafe_load"),
        ("import pickle as p; p.loads(b)", "pickle.loads"),
        ("np.load(p, allow_pickle=True)", "pickles"),
        ("eval('1')", "eval"),
        ("import subprocess; subprocess.run(c, shell=True)", "shell"),
        ("import jinja2; jinja2.Environment(autoescape=False)", "autoescape"),
    ],
)
def test_what_is_dangerous_is_found(source: str, found: str) -> None:
    assert found in set(dangers(source))


def test_what_is_safe_is_not() -> None:
    safe = "import torch, yaml; torch.load(p, weights_only=True); yaml.safe_load(t); net.eval(); re.compile(x)"
    assert list(dangers(safe)) == []
