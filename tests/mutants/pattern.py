"""Patterns of Python code with holes: where code means this, and what it becomes.

A pattern is a piece of Python, an expression or one statement, that is compared with syntax trees:

- a capital letter stands for any expression, the same one wherever it occurs again;
- a name is also the attribute of that name: ``smooth`` finds ``options.smooth``, ``world()`` finds ``distributed.world()``;
- ``_`` stands for any expression, and for any name where Python wants a name, as that of an attribute;
- ``...`` among arguments, elements or statements stands for any number of them; among the arguments of a call also for
  keywords that the pattern does not name. Named keywords may come in any order;
- the sides of ``+ * & |`` may be exchanged, and a comparison may be turned round.

In the code that replaces what was found, letters, names and ``...`` (the last one) stand for what they stood for there.
"""

import ast
import copy
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

Found = dict[str, Any]  # what each letter and name of a pattern stands for; under "..." and "**" what the dots left out
Function = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
TURNED = {ast.Lt: ast.Gt, ast.Gt: ast.Lt, ast.LtE: ast.GtE, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq}


def parse(code: str) -> ast.AST:
    """The tree of an expression or of one statement."""
    (statement,) = ast.parse(code).body
    return statement.value if isinstance(statement, ast.Expr) else statement


def match(pattern: Any, node: Any, found: Found) -> Found | None:
    """What the holes stand for if the node is what the pattern says, beside what was `found`; None if it is not."""
    if isinstance(pattern, ast.Name):
        return _name(pattern.id, node, found)
    if isinstance(pattern, list):
        return _sequence(pattern, node, found) if isinstance(node, list) else None
    if not isinstance(pattern, ast.AST):
        return found if pattern == node or (pattern == "_" and isinstance(node, str)) else None
    if type(pattern) is not type(node):
        return None
    if isinstance(pattern, ast.Call):
        return _call(pattern, node, found)
    result = _fields(pattern, node, found)
    return _fields(pattern, _turned(node), found) if result is None else result


def find(
    tree: ast.AST, pattern: ast.AST, beside: Sequence[ast.AST] = (), inside: ast.AST | None = None
) -> Iterator[tuple[ast.AST, Found]]:
    """Every node that matches, as (node, found); `pattern` is more than a name.

    Args:
        tree: a module.
        pattern: what to find.
        beside: the innermost function around the node holds all of these too, with the same things in the letters.
        inside: something around the node matches this; a name is also that of a function or a class.
    """
    for node, above in _walk(tree).get(type(pattern), []):
        found = match(pattern, node, {})
        if found is not None and inside is not None:
            found = next((f for outer in above if (f := _around(inside, outer, found)) is not None), None)
        function = next((outer for outer in reversed(above) if isinstance(outer, Function)), tree)
        for other in beside:
            if found is not None:
                found = next((f for n in ast.walk(function) if (f := match(other, n, found)) is not None), None)
        if found is not None:
            yield node, found


def fill(change: ast.AST, found: Found) -> ast.AST:
    """The code that replaces what was found."""
    return _Fill(found).visit(copy.deepcopy(change))


def replace(tree: ast.AST, node: ast.AST, new: ast.AST) -> str:
    """The code of the tree with `new` in the place of the node."""
    return ast.unparse(copy.deepcopy(tree, {id(node): new}))  # a copy that knows the node already as the new one


@cache
def _walk(tree: ast.AST) -> dict[type[ast.AST], list[tuple[ast.AST, tuple[ast.AST, ...]]]]:
    """Every node and those around it, by type."""
    nodes: list[tuple[ast.AST, tuple[ast.AST, ...]]] = [(tree, ())]
    found: dict[type[ast.AST], list[tuple[ast.AST, tuple[ast.AST, ...]]]] = {}
    for node, above in nodes:
        nodes += [(child, (*above, node)) for child in ast.iter_child_nodes(node)]
        found.setdefault(type(node), []).append((node, above))
    return found


def _around(pattern: ast.AST, node: ast.AST, found: Found) -> Found | None:
    if isinstance(pattern, ast.Name) and getattr(node, "name", None) == pattern.id:
        return found
    return match(pattern, node, found)


def _name(name: str, node: Any, found: Found) -> Found | None:
    if not isinstance(node, ast.expr):
        return None
    hole = name == "_" or (len(name) == 1 and name.isupper())
    if not hole and name != (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)):
        return None
    if name in found and name != "_" and ast.unparse(found[name]) != ast.unparse(node):
        return None
    return found | {name: node}


def _dots(node: Any) -> bool:
    inner = node.value if isinstance(node, ast.Expr) else None
    return isinstance(node, ast.Constant) and node.value is Ellipsis if inner is None else _dots(inner)


def _sequence(patterns: list[Any], nodes: list[Any], found: Found) -> Found | None:
    if not patterns:
        return None if nodes else found
    first, *rest = patterns
    if _dots(first):
        ends = (_sequence(rest, nodes[i:], found | {"...": nodes[:i]}) for i in range(len(nodes), -1, -1))
        return next((result for result in ends if result is not None), None)
    result = match(first, nodes[0], found) if nodes else None
    return None if result is None else _sequence(rest, nodes[1:], result)


def _call(pattern: ast.Call, node: ast.Call, found: Found) -> Found | None:
    given = {keyword.arg: keyword.value for keyword in node.keywords}
    result = match(pattern.func, node.func, found)
    for keyword in pattern.keywords:
        result = None if result is None else match(keyword.value, given.pop(keyword.arg, None), result)
    result = None if result is None else _sequence(pattern.args, node.args, result)
    if result is None or (given and not any(map(_dots, pattern.args))):
        return None
    return result | {"**": [k for k in node.keywords if k.arg in given]} if given else result


def _fields(pattern: ast.AST, node: ast.AST | None, found: Found | None) -> Found | None:
    for field in pattern._fields:
        if found is None or node is None:
            return None
        if field not in ("ctx", "kind", "type_comment"):
            found = match(getattr(pattern, field), getattr(node, field), found)
    return found


def _turned(node: Any) -> ast.AST | None:
    """The same said the other way round, where there is one."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mult | ast.BitAnd | ast.BitOr):
        return ast.BinOp(node.right, node.op, node.left)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in TURNED:
        return ast.Compare(node.comparators[0], [TURNED[type(node.ops[0])]()], [node.left])
    return None


class _Fill(ast.NodeTransformer):
    def __init__(self, found: Found) -> None:
        self.found = found

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return copy.deepcopy(self.found.get(node.id, node))

    def visit_Constant(self, node: ast.Constant) -> Any:
        return copy.deepcopy(self.found["..."]) if _dots(node) and "..." in self.found else node

    def visit_Expr(self, node: ast.Expr) -> Any:
        return self.visit_Constant(node.value) if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        dots = any(map(_dots, node.args))
        node = ast.Call(**dict(ast.iter_fields(self.generic_visit(node))))
        node.keywords += copy.deepcopy(self.found.get("**", [])) if dots else []
        return node
