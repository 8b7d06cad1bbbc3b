"""The rules of faults find their places, wherever the code stands, and some faults are noticed here and now.

All of them: ``python -m tests.mutants``.
"""

import ast
import subprocess
import sys

import pytest

from tests.mutants import native
from tests.mutants.pattern import fill, find, parse, replace
from tests.mutants.planting import ROOT, Rule, places
from tests.mutants.rules import RULES

# What no fault is planted in: names, and what prints them.
WITHOUT = {"__init__", "__main__", "functional", "__pycache__"}


def changed(code: str, old: str, new: str, *, beside: tuple[str, ...] = (), inside: str = "") -> list[str]:
    """The code with each place of the pattern changed by itself."""
    tree, pattern, change = ast.parse(code), parse(old), parse(new)
    if isinstance(change, ast.stmt) and isinstance(pattern, ast.expr):
        pattern = ast.Expr(pattern)
    around = parse(inside) if inside else None
    found = find(tree, pattern, [parse(other) for other in beside], around)
    return [replace(tree, node, fill(change, holes)) for node, holes in found]


@pytest.mark.parametrize(
    ("code", "old", "new", "wanted"),
    [
        # Letters, names that are attributes, and what they stand for.
        ("a.b / len(x)", "A / B", "B / A", ["len(x) / a.b"]),
        ("2 * x + 2 * y", "2 * A", "A", ["x + 2 * y", "2 * x + y"]),
        ("options.smooth + s", "A + smooth", "A - smooth", ["s - options.smooth"]),
        ("x + smoother", "A + smooth", "A", []),
        ("x[i] - x[j]", "A[S] - A[T]", "A[T] - A[S]", ["x[j] - x[i]"]),
        ("x[i] - y[j]", "A[S] - A[T]", "A", []),
        ("d.world() * x", "A * world()", "A", ["x"]),
        # Any name.
        ("x.fill_(0); x.zero_()", "A._(...)", "pass", ["pass\nx.zero_()", "x.fill_(0)\npass"]),
        ("f(lambda a, b: g(b))", "lambda _, _: g(A)", "lambda x: A", ["f(lambda x: b)"]),
        # The sides of what commutes, and comparisons turned round.
        ("n_positives > 0", "0 < A", "A", ["n_positives"]),
        ("x - y", "A - x", "A", []),
        ("m & (c < hi)", "(A < hi) & m", "A", ["c"]),
        ("a <= b", "A < B", "A", []),
        # Dots: arguments, keywords, elements, statements.
        ("sort(x, 1, stable=True, out=y)", "sort(..., stable=True)", "sort(..., stable=False)", ["sort(x, 1, stable=False, out=y)"]),
        ("sort(x, out=y, stable=True)", "sort(A, stable=True)", "A", []),
        ("sort(x, stable=True, dim=1)", "sort(A, dim=1, stable=True)", "A", ["x"]),
        ("save(*x, p, q)", "save(..., P, Q)", "save(..., Q, P)", ["save(*x, q, p)"]),
        ("[0, 'mixed', 1]", "[..., 'mixed', A]", "[..., A]", ["[0, 1]"]),
        ("if options.batch:\n    x = 1\n    y = 2", "if batch:\n    ...", "if False:\n    ...", ["if False:\n    x = 1\n    y = 2"]),
        # A statement, and a call that is one.
        ("s[i] += f(x)", "A[S] += B", "pass", ["pass"]),
        ("y = x.clear(1)", "A.clear(...)", "pass", []),
        ("y = [a for a in b if weight]", "[A for B in C if weight]", "[A for B in C]", ["y = [a for a in b]"]),
        # Formatting is nothing.
        ("torch.where(  # why\n    a, b,\n    0.0,\n)", "torch.where(A, B, 0.0)", "B * A", ["b * a"]),
    ],
)  # fmt: skip
def test_patterns(code, old, new, wanted):
    assert changed(code, old, new) == wanted


def test_patterns_look_around():
    code = "def f(x, smooth):\n    return 2 * x\n\ndef g(x):\n    return [smooth, lambda: 2 * x]\n\ndef h(x, y):\n    return k(2 * x, y + x)"
    assert len(changed(code, "2 * A", "A")) == 3
    assert changed(code, "2 * A", "A", beside=("y + A",)) == [code.replace("k(2 * x", "k(x")]
    assert changed(code, "2 * A", "A", beside=("y + A", "[A]")) == []
    assert changed(code, "2 * A", "A", inside="k(...)") == [code.replace("k(2 * x", "k(x")]
    assert changed(code, "2 * A", "A", inside="f") == [code.replace("return 2 * x", "return x")]
    assert (
        changed(code, "2 * A", "A", beside=("smooth",)) == []
    )  # a parameter is no use of it, and lambdas are functions


def write(folder, **modules):
    (folder / "mmgl_losses").mkdir()
    for name, code in modules.items():
        (folder / "mmgl_losses" / f"{name}.py").write_text(code)
    return folder


def rule(*changes, each=False):
    return Rule("a fault", dict(changes), ("tests/test_mutants.py",), each, (), "", {})


def test_a_place_moves_and_is_renamed(tmp_path):
    root = write(
        tmp_path, anywhere="class New:\n    def other(self, a):\n        return (\n            2 * a\n        )"
    )
    (place,) = places(rule(("2 * A", "A")), root)
    assert (place.module, place.line) == ("anywhere", 4)
    assert place.code().endswith("return a")


@pytest.mark.parametrize(
    ("each", "code", "words"),
    [
        (False, "x", r"one place of `2 \* A`, got nowhere"),
        (True, "x", r"at least one place of `2 \* A`, got nowhere"),
        (False, "2 * x\n2 * y", r"one place of `2 \* A`, got mmgl_losses/a\.py:2, mmgl_losses/a\.py:3"),
    ],
)
def test_a_rule_without_its_place_is_an_error(each, code, words, tmp_path):
    root = write(tmp_path, a=f"3 * z\n{code}", b="")
    with pytest.raises(LookupError, match=rf"Expected {words}\. Mend the rule 'a fault'\."):
        places(rule(("3 * A", "A"), ("2 * A", "A"), each=each), root)


def test_every_rule_has_its_place_and_every_test_exists():
    assert len({rule.what for rule in RULES}) == len(RULES) >= 40
    for rule in RULES:
        for place in places(rule):
            assert ast.unparse(place.new) != ast.unparse(place.node), rule.what
        for test in rule.tests:
            file, _, name = test.partition("::")
            assert f"def {name.partition('[')[0] or 'test_'}" in (ROOT / file).read_text(), test


def test_every_fault_of_the_native_engine_has_one_place():
    for old, new in native.FAULTS.values():
        path, text = native.planted(old, new)
        assert text != (ROOT / path).read_text()
    with pytest.raises(LookupError, match="got 0. Mend"):
        native.planted("not there", "")


def test_every_room_has_rules():
    """Every room of the package, and in `losses` and `contrast` every module that computes."""
    modules = {place.module for rule in RULES for place in places(rule)}
    there = {path.stem for path in (ROOT / "mmgl_losses").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - {module.split("/")[0] for module in modules} - WITHOUT == set()


def test_some_are_noticed():
    """A few of them, of three rooms, in a process that has never seen the package."""
    words = ["places are off", "the floor is the worst", "twice is not noticed"]
    command = [sys.executable, "-m", "tests.mutants", "--jobs", "2", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4 of 4 faults are noticed" in result.stdout
