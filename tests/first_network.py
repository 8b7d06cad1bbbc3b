"""``python -m tests.first_network``: how long a new user needs, from an empty folder to a trained network.

Runs the commands of `docs/install.md` as they stand there, one by one, in an empty folder. The package is the wheel of
this checkout, with torch as it is pinned; the script is the one of this checkout. ``--write`` puts the times into the page.
"""

import argparse
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "install.md"
BLOCK = re.compile(r"(?:^    .+\n)+", re.MULTILINE)
SCRIPT = re.compile(r"curl -LO \S+/main/(\S+)")
MEASURED = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- /measured -->)", re.DOTALL)


def commands(page: str) -> list[str]:
    """The commands that people follow: of the page's blocks the one that makes an environment."""
    (block,) = [found for found in BLOCK.findall(page) if "-m venv" in found]
    return [line.strip() for line in block.splitlines()]


def here(command: str, wheel: Path, torch: str) -> str:
    """The same with what is not published yet: the wheel in the place of its name, a copy in that of a download."""
    if download := SCRIPT.fullmatch(command):
        return f"cp {ROOT / download[1]} ."
    return re.sub(r"^python ", f"{sys.executable} ", command).replace(" mmgl-losses", f" {wheel} {torch}")


def timed(command: str, folder: Path) -> tuple[float, float]:
    """Seconds on the clock, and seconds of processors, that a command takes; its own words where it fails."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, "PIP_NO_CACHE_DIR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(shlex.split(command), cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    print(done.stdout[-2000:], file=sys.stderr)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Prints the table, row by row."""
    parser = argparse.ArgumentParser(prog="python -m tests.first_network", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    options = parser.parse_args()
    page = PAGE.read_text(encoding="utf-8")
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (torch,) = re.findall(r"^torch==.*$", pinned, re.MULTILINE)
    cores = f"{os.cpu_count()} cores of {platform.machine()}, Python {platform.python_version()}"
    rows = [f"| on {cores} | on the clock | of processors |", "|---|---|---|"]
    with TemporaryDirectory() as work:
        dist, folder = Path(work, "dist"), Path(work, "empty")
        folder.mkdir()
        build = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(ROOT))
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = dist.glob("*.whl")
        total = [0.0, 0.0]
        for command in commands(page):
            both = timed(here(command, wheel, torch), folder)
            total = [a + b for a, b in zip(total, both, strict=True)]
            rows.append(f"| `{re.sub(r'http.*/', '.../', command)}` | {both[0]:.0f} s | {both[1]:.0f} s |")
        rows.append(f"| all of it | {total[0]:.0f} s | {total[1]:.0f} s |")
        if not (folder / "three_stages.png").exists():
            raise SystemExit(f"no three_stages.png among {sorted(path.name for path in folder.iterdir())}")
    print("\n".join(rows))
    if options.write:
        PAGE.write_text(MEASURED.sub(lambda _: "\n" + "\n".join(rows) + "\n\n", page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
