"""Where the rules plant their faults in the package."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.mutants.pattern import fill, find, parse, replace

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True, eq=False)
class Rule:
    """A fault: every pattern of `changes` has its place in the package; `tests` are what pytest is given."""

    what: str
    changes: Mapping[str, str]  # pattern -> what it becomes
    tests: tuple[str, ...]
    each: bool  # several places are right, otherwise one for each pattern
    beside: tuple[str, ...]  # what else the function around the place holds
    inside: str  # what is around the place: a pattern, or the name of a function or class
    env: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Place:
    """Where a rule plants its fault."""

    rule: Rule
    path: Path  # from the root of the repository
    tree: ast.Module
    node: ast.AST
    new: ast.AST

    @property
    def module(self) -> str:
        """The module, from the package on."""
        return "/".join(self.path.with_suffix("").parts[1:])

    @property
    def line(self) -> int:
        """Where the code begins that is changed."""
        return getattr(self.node, "lineno", 0)

    def code(self) -> str:
        """The module with the fault in it."""
        return replace(self.tree, self.node, self.new)


@cache
def package(root: Path = ROOT) -> list[tuple[Path, ast.Module]]:
    """The modules of the package, as they are now."""
    return [
        (path.relative_to(root), ast.parse(path.read_text())) for path in sorted((root / "mmgl_losses").rglob("*.py"))
    ]


@cache
def places(rule: Rule, root: Path = ROOT) -> list[Place]:
    """All places of a rule in the package; a LookupError where a pattern has none, or more than the rule says."""
    beside, inside = [parse(code) for code in rule.beside], parse(rule.inside) if rule.inside else None
    every = []
    for old, new in rule.changes.items():
        pattern, change = parse(old), parse(new)
        if isinstance(change, ast.stmt) and isinstance(pattern, ast.expr):
            pattern = ast.Expr(pattern)
        here = [
            Place(rule, path, tree, node, fill(change, found))
            for path, tree in package(root)
            for node, found in find(tree, pattern, beside, inside)
        ]
        if not here or (len(here) > 1 and not rule.each):
            at = ", ".join(f"{place.path}:{place.line}" for place in here) or "nowhere"
            wanted = "at least one place" if rule.each else "one place"
            raise LookupError(f"Expected {wanted} of `{old}`, got {at}. Mend the rule {rule.what!r}.")
        every += here
    return every
