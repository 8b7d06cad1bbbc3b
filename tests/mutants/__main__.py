"""``python -m tests.mutants``: plant every fault, one at a time, and demand that its tests fail."""

import argparse
import gc
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import hypothesis
import pytest
import torch

from tests.mutants.planting import ROOT, Place, Rule, places
from tests.mutants.rules import RULES

KILLED, SURVIVED, BROKEN = "killed", "survived", "does not run"


def run(tests: Collection[str], env: Mapping[str, str], place: Place | None = None) -> str:
    """Run tests on a copy of the package, with a fault planted in it: the verdict."""
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_package(Path(folder))
        if place is not None:
            (copy / place.path).write_text(place.code())
        return pytest_in(copy, tests, env, say=place is None)


def copy_package(folder: Path) -> Path:
    """A copy of all that the tests of the package need; its folder."""
    for name in ("mmgl_losses", "tests", "benchmarks", "docs"):
        ignored = shutil.ignore_patterns("examples", "results", "images", "_build")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, folder)
    return folder


def pytest_in(
    copy: Path, tests: Collection[str], env: Mapping[str, str] = MappingProxyType({}), *, say: bool = True
) -> str:
    """The verdict of tests on a copy of the package; where they fail, `say` prints what they said.

    In a fork of this process, which has torch, hypothesis and pytest ready and has never seen the package.
    """
    child = multiprocessing.get_context("fork").Process(target=_pytest, args=(copy, tests, env))
    child.start()
    child.join()
    if say and child.exitcode:
        print((copy / "said").read_text()[-4000:])
    return {0: SURVIVED, 1: KILLED}.get(99 if child.exitcode is None else child.exitcode, BROKEN)


def _pytest(copy: Path, tests: Collection[str], env: Mapping[str, str]) -> None:
    os.environ.update(env)
    os.environ["PYTHONPATH"] = str(copy)
    os.chdir(copy)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "mmgl_losses", "benchmarks")]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    gc.freeze()  # pytest collects garbage several times, and all of torch is none
    said = os.open(copy / "said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    options = ["-x", "-q", "--tb=line", "--assert=plain", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    code = 99
    try:
        result = int(pytest.main([*options, *tests]))
        package = sys.modules.get("mmgl_losses")
        code = result if package is not None and str(package.__file__).startswith(str(copy)) else code
    finally:
        os._exit(code)


def _healthy(chosen: list[Rule]) -> list[tuple[Mapping[str, str], list[str]]]:
    """All tests of the chosen rules, once for each environment: without a fault they must pass."""
    kinds = {tuple(rule.env.items()) for rule in chosen}
    return [
        (dict(kind), sorted({t for r in chosen if tuple(r.env.items()) == kind for t in r.tests})) for kind in kinds
    ]


def _row(rule: Rule, verdicts: list[tuple[Place, str]]) -> str:
    """A row of the table: where the fault was planted, how often it was noticed, and by whom."""
    where = Counter(place.module for place, _ in verdicts)
    modules = ", ".join(f"`{module}`" + (f" ({count})" if count > 1 else "") for module, count in where.items())
    killed = sum(verdict == KILLED for _, verdict in verdicts)
    tests = ", ".join(f"`{test.removeprefix('tests/')}`" for test in rule.tests)
    what = rule.what.replace("|", r"\|")
    return f"| {what} | {modules} | {killed} of {len(verdicts)} | {tests} |"


def main() -> int:
    """Plant faults and print a table; 1 where one survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only rules whose sentence holds one of these")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    parser.add_argument("--markdown", type=Path, help="write the table here, between its markers")
    options = parser.parse_args()
    chosen = [rule for rule in RULES if not options.words or any(word in rule.what for word in options.words)]
    planted = [place for rule in chosen for place in places(rule)]
    torch.set_num_threads(1)
    pytest.main(["--version"])  # loads the plug-ins of pytest once, for all forks
    print(f"torch {torch.__version__}, hypothesis {hypothesis.__version__}", flush=True)
    start, verdicts = time.perf_counter(), {}
    with ThreadPoolExecutor(options.jobs) as pool:
        planting = pool.map(lambda place: run(place.rule.tests, place.rule.env, place), planted)
        sound = [pool.submit(run, tests, env) for env, tests in _healthy(chosen)]
        for place, verdict in zip(planted, planting, strict=True):
            verdicts.setdefault(place.rule.what, []).append((place, verdict))
            seconds = time.perf_counter() - start
            print(f"{seconds:5.0f} s  {verdict:<13} {place.module}:{place.line}  {place.rule.what}", flush=True)
        if any(verdict.result() != SURVIVED for verdict in sound):
            print("The tests fail without a fault: nothing is proved.")
            return 2
    killed = sum(verdict == KILLED for of_rule in verdicts.values() for _, verdict in of_rule)
    head = f"{len(chosen)} rules, planted in {len(planted)} places: {killed} of {len(planted)} faults are noticed."
    print(head)
    if options.markdown is not None:
        begin, end = "<!-- mutants -->", "<!-- /mutants -->"
        before, _, rest = options.markdown.read_text().partition(begin)
        lines = [_row(rule, verdicts[rule.what]) for rule in chosen]
        table = [head, "", "| fault | planted in | noticed | tests |", "|---|---|---|---|", *lines]
        options.markdown.write_text("\n".join([before + begin, "", *table, "", end]) + rest.partition(end)[2])
    return 0 if killed == len(planted) else 1


if __name__ == "__main__":
    sys.exit(main())
