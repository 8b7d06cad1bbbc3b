"""``python -m tests.sanitize``: the native engine under the sanitizers of g++ or clang++.

The tests run with the library built under AddressSanitizer and UndefinedBehaviorSanitizer; then a program, without Python
and torch, runs under ThreadSanitizer. Any report ends the process. The usual library is built again at the end.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import hatch_build

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / hatch_build.LIBRARY
FLAGS = ("-g", "-O1", "-fno-omit-frame-pointer")
TESTS = ("tests/test_native.py", "tests/test_contrast.py", "tests/test_known_pairs.py")


def addresses(cxx: str) -> int:
    """The exit status of the tests; what Python itself leaves at its end is no concern, and memory is measured elsewhere."""
    print(
        hatch_build.build(ROOT, LIBRARY, *FLAGS, "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
        flush=True,
    )
    find = [
        subprocess.check_output([cxx, f"-print-file-name={x}"], text=True).strip()
        for x in ("libasan.so", "libstdc++.so")
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
        "native and not memory",
    ]
    more = {"ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1", "LD_PRELOAD": ":".join(find)}
    try:
        return subprocess.run(command, cwd=ROOT, env={**os.environ, **more}, check=False).returncode
    finally:
        print(hatch_build.build(ROOT, LIBRARY))


def threads(cxx: str) -> int:
    """The exit status of the program."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "threads"
        print(
            hatch_build.build(ROOT, out, *FLAGS, "-fsanitize=thread", program=ROOT / "tests/native_threads.cpp"),
            flush=True,
        )
        return subprocess.run([out], env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}, check=False).returncode


def main() -> int:
    """Run them; 1 where something was reported."""
    sanitizers = {"addresses": addresses, "threads": threads}
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(sanitizers), help=f"of {', '.join(sanitizers)}")
    names, cxx = parser.parse_args().names, hatch_build.compiler()
    if cxx is None:
        print("there is no C++ compiler")
        return 1
    failed = [name for name in names if sanitizers[name](cxx)]
    print(f"reports or failures: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
