"""``python -m tests.mutants``: plant every fault, one at a time, and demand that its tests fail."""

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.mutants.table import MUTANTS, Mutant

ROOT = Path(__file__).parent.parent.parent
KILLED, SURVIVED, BROKEN = "killed", "survived", "does not run"


def place(mutant: Mutant, root: Path = ROOT) -> Path:
    """The file that holds the text of a fault; exactly one does, exactly once."""
    package = root / "mmgl_losses"
    files = [path for path in sorted(package.rglob("*.py")) if str(path.relative_to(package)).startswith(mutant.where)]
    counts = {path: path.read_text().count(mutant.old) for path in files}
    if sum(counts.values()) != 1:
        raise LookupError(
            f"{mutant.where}: {sum(counts.values())} times instead of once: {mutant.old!r} ({mutant.what})"
        )
    return next(path for path, count in counts.items() if count)


def run(tests: Collection[str], env: Mapping[str, str], mutant: Mutant | None = None) -> str:
    """Run tests on a copy of the package, with a fault planted in it: the verdict.

    In a fork of this process, which has torch and pytest ready and has never seen the package.
    """
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("mmgl_losses", "tests", "benchmarks", "docs"):
            ignored = shutil.ignore_patterns("__pycache__", "examples", "networks", "results", "images", "_build")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if mutant is not None:
            path = copy / place(mutant).relative_to(ROOT)
            path.write_text(path.read_text().replace(mutant.old, mutant.new))
        child = multiprocessing.get_context("fork").Process(target=_pytest, args=(copy, tests, env))
        child.start()
        child.join()
        if mutant is None and child.exitcode:
            print((copy / "said").read_text()[-4000:])
    return {0: SURVIVED, 1: KILLED}.get(99 if child.exitcode is None else child.exitcode, BROKEN)


def _pytest(copy: Path, tests: Collection[str], env: Mapping[str, str]) -> None:
    os.environ.update(env)
    os.environ["PYTHONPATH"] = str(copy)
    os.chdir(copy)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "mmgl_losses", "benchmarks")]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    said = os.open(copy / "said", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 1)
    os.dup2(said, 2)
    options = ["-x", "-q", "--tb=short", "-p", "no:cacheprovider", "--hypothesis-profile=mutants"]
    code = 99
    try:
        result = int(pytest.main([*options, *tests]))
        package = sys.modules.get("mmgl_losses")
        code = result if package is not None and str(package.__file__).startswith(str(copy)) else code
    finally:
        os._exit(code)


def _healthy(chosen: list[Mutant]) -> list[tuple[Mapping[str, str], list[str]]]:
    """All tests of the chosen faults, once for each environment: without a fault they must pass."""
    kinds = {tuple(mutant.env.items()) for mutant in chosen}
    return [
        (dict(kind), sorted({t for m in chosen if tuple(m.env.items()) == kind for t in m.tests})) for kind in kinds
    ]


def main() -> int:
    """Plant faults and print a table; 1 where one survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="only faults whose place or description holds one of these")
    parser.add_argument("--jobs", type=int, default=2, help="how many at once")
    parser.add_argument("--markdown", type=Path, help="write the table here, between its markers")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if not options.words or any(word in f"{m.where} {m.what}" for word in options.words)]
    for mutant in chosen:
        place(mutant)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, hypothesis {version('hypothesis')}, {len(chosen)} faults", flush=True)
    start, lines, left = time.perf_counter(), [], []
    with ThreadPoolExecutor(options.jobs) as pool:
        sound = [pool.submit(run, tests, env) for env, tests in _healthy(chosen)]
        for mutant, verdict in zip(chosen, pool.map(lambda m: run(m.tests, m.env, m), chosen), strict=True):
            noticed = ", ".join(f"`{test.removeprefix('tests/')}`" for test in mutant.tests)
            what = mutant.what.replace("|", r"\|")
            lines.append(f"| `{mutant.where}` | {what} | {verdict} | {noticed} |")
            left += [mutant] if verdict != KILLED else []
            print(f"{verdict:<13} {mutant.where:<22} {mutant.what}", flush=True)
        if any(verdict.result() != SURVIVED for verdict in sound):
            print("The tests fail without a fault: nothing is proved.")
            return 2
    print(f"{len(chosen) - len(left)} of {len(chosen)} killed in {time.perf_counter() - start:.0f} s")
    if options.markdown is not None:
        begin, end = "<!-- mutants -->", "<!-- /mutants -->"
        text = options.markdown.read_text()
        head = f"{len(chosen) - len(left)} of {len(chosen)} faults are noticed.\n\n| where | fault | verdict | tests |\n|---|---|---|---|"
        before, _, rest = text.partition(begin)
        options.markdown.write_text("\n".join([before + begin, "", head, *lines, "", end]) + rest.partition(end)[2])
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
