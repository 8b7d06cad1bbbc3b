"""``python -m tests.sanitize``: the tests of the native engine with the library built under sanitizers of g++ or clang.

AddressSanitizer and UndefinedBehaviorSanitizer first, ThreadSanitizer next: any report ends the process. The usual
library is built again at the end.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import hatch_build

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / hatch_build.LIBRARY
FLAGS = ("-g", "-O1", "-fno-omit-frame-pointer")
TESTS = ("tests/test_native.py", "tests/test_contrast.py", "tests/test_known_pairs.py")
SANITIZERS = {
    "address": (("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), "libasan.so", "native"),
    "thread": (("-fsanitize=thread",), "libtsan.so", "native and (threads or derivative or layout)"),
}
# Python itself leaves memory at the end; memory is measured elsewhere, and torch's own processes are no part of it.
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "TSAN_OPTIONS": "halt_on_error=1 report_signal_unsafe=0",
    "OMP_NUM_THREADS": "1",
}


def run(name: str) -> int:
    """The exit status of the tests under one sanitizer."""
    flags, runtime, chosen = SANITIZERS[name]
    cxx = hatch_build.compiler()
    print(hatch_build.build(ROOT, LIBRARY, *FLAGS, *flags), flush=True)
    if cxx is None or not LIBRARY.exists():
        return 1
    find = [
        subprocess.check_output([cxx, f"-print-file-name={file}"], text=True).strip()
        for file in (runtime, "libstdc++.so")
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *TESTS,
        "-k",
        f"{chosen} and not memory",
    ]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **OPTIONS, "LD_PRELOAD": ":".join(find)}, check=False
    ).returncode


def main() -> int:
    """Run them; 1 where something was reported."""
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SANITIZERS), help=f"of {', '.join(SANITIZERS)}")
    names = parser.parse_args().names
    try:
        failed = [name for name in names if run(name)]
    finally:
        print(hatch_build.build(ROOT, LIBRARY))
    print(f"reports or failures under: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
