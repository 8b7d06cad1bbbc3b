"""``python -m tests.versions``: the tests of the package in fresh environments, with other versions of Python and torch.

Each environment gets one release of torch, and beside it what the tests below need. torch comes without what it asks
for: builds for CUDA would bring gigabytes of libraries that a CPU does not use (`cuda_stubs`). Linux only, with gcc.
``--write`` puts the table into ``docs/versions.md``.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests import cuda_stubs

ROOT = Path(__file__).parent.parent
PAGE, FOLDER = ROOT / "docs" / "versions.md", ROOT / ".venv-versions"
DONE = "done"  # a file in an environment that is whole
PAIRS = (
    "3.10:2.8.0",
    "3.13:2.8.0",
    "3.10:2.9.1",
    "3.11:2.10.0",
    "3.12:2.11.0",
    "3.12:2.12.1",
    "3.11:2.13.0",
    "3.13:2.13.0",
)
NEEDS = ("filelock", "sympy", "networkx", "jinja2", "fsspec", "typing-extensions", "setuptools", "numpy", "einops")
TESTED_WITH = ("pytest>=9", "hypothesis>=6.100", "matplotlib", "packaging", "safetensors")
ALONE = ("monai==1.6.1", "torchmetrics>=1.9", "lightning-utilities")  # without torch and CUDA, which they ask for
# Everything that needs no other library, no compiled engine and no checkout of the examples.
TESTS = (
    "mmgl_losses",
    *(f"tests/test_{name}.py" for name in ("additions", "bad_input", "contrast", "derivatives", "determinism", "dice")),
    *(f"tests/test_{name}.py" for name in ("flow", "functional", "gather", "global_levels", "heads", "known_pairs")),
    *(
        f"tests/test_{name}.py"
        for name in ("laws", "losses", "options", "plugins", "public_face", "reduction", "safety")
    ),
    *(f"tests/test_{name}.py" for name in ("sampling", "silent_choices", "stages", "taps", "taps_distributed")),
    *(f"tests/test_{name}.py" for name in ("load", "testing", "unet")),
    *(f"tests/ways/test_{name}.py" for name in ("compiled", "compiled_changes", "loops", "precision", "processes")),
)
SUMMARY = re.compile(r"(\d+) (passed|failed|error|skipped|xfailed)")


def interpreter(version: str) -> str | None:
    """A Python of this version that starts: on the path, or one of pyenv's."""
    home = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = [shutil.which(f"python{version}"), *sorted(home.glob(f"versions/{version}.*/bin/python"))]
    for path in filter(None, found):
        said = subprocess.run([path, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True)
        if said.stdout.strip() == str(tuple(map(int, version.split(".")))):
            return str(path)
    return None


def environment(python: str, torch: str, folder: Path) -> Path:
    """A fresh environment with this release of torch; its Python."""
    shutil.rmtree(folder, ignore_errors=True)
    run(python, "-m", "venv", str(folder))
    own = folder / "bin" / "python"
    install = (str(own), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*install, "--no-cache-dir", "--no-deps", f"torch=={torch}")
    run(*install, *NEEDS, *TESTED_WITH)
    run(*install, "--no-deps", *ALONE)
    run(*install, "--no-deps", "--editable", str(ROOT), HATCH_BUILD_NO_HOOKS="true")  # beside an engine that is built
    where = run(str(own), "-c", "import sysconfig; print(sysconfig.get_path('platlib'))").strip()
    cuda_stubs.write(Path(where) / "torch" / "lib")
    (folder / DONE).touch()
    return own


def trial(pair: str, tests: Iterable[str], *, keep: bool) -> str:
    """One row of the table."""
    version, _, torch = pair.partition(":")
    python = interpreter(version)
    if python is None:
        return f"| {version} | {torch} | not run: no such Python here | |"
    folder = FOLDER / f"{version}-{torch}"
    own = folder / "bin" / "python"
    if not (keep and (folder / DONE).exists()):
        own = environment(python, torch, folder)
    what = run(str(own), "-c", "import platform, torch; print(platform.python_version(), torch.__version__)").split()
    command = (str(own), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *tests)
    log = FOLDER / f"{version}-{torch}.log"
    with log.open("w") as file:
        subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=False)
    text = log.read_text()
    counts = {kind: int(n) for n, kind in SUMMARY.findall(text.rstrip().rpartition("\n")[2])}
    bad = counts.get("failed", 0) + counts.get("error", 0)
    passed = f"{counts.get('passed', 0)} passed" + (f", **{bad} failed** (see {log.name})" if bad else "")
    if not counts:
        passed = f"**did not run** (see {log.name})"
    reasons = sorted(set(re.findall(r"^SKIPPED \[\d+\] [^ ]+ (.*)$", text, re.MULTILINE)))
    if not keep:
        shutil.rmtree(folder)
    return f"| {what[0]} | {what[1]} | {passed} | {'; '.join(reasons) or 'nothing'} |"


def run(*command: str, **env: str) -> str:
    """What a command prints; its own words where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> int:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__)
    parser.add_argument("pairs", nargs="*", default=PAIRS, help=f"Python:torch, such as {PAIRS[0]}; all by default")
    parser.add_argument("--tests", nargs="+", default=TESTS, help="other tests than those of the table")
    parser.add_argument(
        "--keep", action="store_true", help=f"keep the environments in {FOLDER.name}, and take those that are there"
    )
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    rows = ["| Python | torch | tests of the package | left out |", "|---|---|---|---|"]
    print("\n".join(rows), flush=True)
    for pair in options.pairs:
        rows.append(trial(pair, options.tests, keep=options.keep))
        print(rows[-1], flush=True)
    if options.write:
        head, _, _ = PAGE.read_text(encoding="utf-8").partition("| Python |")
        PAGE.write_text(head + "\n".join(rows) + "\n", encoding="utf-8")
    return int(any("**" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())
