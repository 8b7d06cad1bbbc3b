"""Every public name has an example that runs, a law or an oracle, and bad input."""

import ast
import doctest
import inspect
from pathlib import Path

import mmgl_losses
from mmgl_losses import functional, plugins, sampling, testing
from tests.bad_input import CASES

TESTS = Path(__file__).parent
# Made by the package, not by users: no bad input.
RESULTS = {"PairTerms", "Diagnostics", "Loaded", "Stages", "Failure", "ConformanceError"}
# Their example is that of what returns or raises them.
WITHOUT_EXAMPLE = RESULTS | {"register_loss", "register_head"}
# The kit for authors: what is wrong with a loss is what it reports; `test_testing` holds it.
KIT = {"check_loss", "check_head", "check_formula"}


def public():
    """Name -> object: the package, the functions, names, places and the kit for authors."""
    found = {name: x for name, x in vars(mmgl_losses).items() if name[0] != "_" and not inspect.ismodule(x)}
    found |= {name: getattr(functional, name) for name in functional.__all__}
    for module in (plugins, sampling, testing):
        own = vars(module).items()
        found |= {n: x for n, x in own if callable(x) and n[0] != "_" and x.__module__.startswith(module.__name__)}
    return found


def names_in(function: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(function) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(function) if isinstance(node, ast.Attribute)
    }


def held() -> tuple[set[str], set[str]]:
    """Names that occur in tests, and in properties (tests that are given their input), with what their helpers use."""
    tests, properties = set(), set()
    for path in sorted(TESTS.glob("*.py")):
        tree = ast.parse(path.read_text())
        helpers = {f.name: names_in(f) for f in tree.body if isinstance(f, ast.FunctionDef | ast.ClassDef)}
        for function in [f for f in tree.body if isinstance(f, ast.FunctionDef) and f.name.startswith("test_")]:
            names = names_in(function)
            for name in list(names & helpers.keys()):
                names |= helpers[name]
            tests |= names
            if any("given" in names_in(decorator) for decorator in function.decorator_list):
                properties |= names
                if path.name == "test_laws.py":  # over the table of problems, whose losses these are
                    properties |= {"global_contrast", "local_supcon", "soft_dice"}
    return tests, properties


def test_every_name_has_an_example():
    finder = doctest.DocTestFinder(recurse=False)
    for name, value in public().items():
        if name not in WITHOUT_EXAMPLE:
            assert any(test.examples for test in finder.find(value, name)), f"{name} has no example"


def test_every_name_has_bad_input():
    covered = {case.covers for case in CASES} | {"points", "foreground_places"}  # these two are given checked maps
    missing = public().keys() - covered - RESULTS - KIT
    assert not missing, missing


def test_every_computation_has_a_property_and_every_name_a_test():
    tests, properties = held()
    computing = {
        "global_contrast",
        "local_supcon",
        "soft_dice",
        "pair_logsumexp",
        "pair_terms",
        "GlobalHead",
        "LocalHead",
    }
    computing |= {
        "MultiScaleGlobalContrast",
        "MultiScaleLocalSupCon",
        "DeepSupervisionDice",
        "SegmentationHead",
        "UNet",
    }
    computing |= {"places", "subsample", "strided", "foreground_places", "PairTerms"}
    assert computing <= properties, computing - properties
    missing = public().keys() - tests - RESULTS
    assert not missing, missing
