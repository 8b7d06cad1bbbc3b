"""Builds the native engine: as Hatchling's hook whenever a wheel is made or the package installed, or run by hand.

Without a compiler nothing fails: the package is then the same without that engine, and its wheel is pure. Hatchling's
own ``HATCH_BUILD_NO_HOOKS=true`` makes the pure wheel where there is a compiler.
"""

import argparse
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDER = Path("mmgl_losses/contrast/native")
LIBRARY = FOLDER / "engine.so"
# No -ffast-math: it would fold away what rounds in exp2. The C++ library is the one that torch loads.
COMPILE = ("-std=c++17", "-O3", "-Wall", "-Wextra", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast")
LINK = ("-shared", "-pthread")
AVX512 = ("-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma")
SETS = {
    "x86_64": {"base": (), "avx2": ("-mavx2", "-mfma"), "avx512": AVX512}
}  # elsewhere: what the processor must have


def compiler() -> str | None:
    """The C++ compiler that is there: ``CXX``, as everywhere, or a usual one."""
    return next(
        (found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))), None
    )


def build(root: Path, out: Path, *extra: str, program: Path | None = None) -> str:
    """Build the library, or a program that includes `engine.cpp`, into `out`; what there is then, in one line."""
    cxx = compiler()
    if cxx is None:
        out.unlink(missing_ok=True)
        return "native engine: not built, as there is no C++ compiler (g++ or clang++); all else works without it"
    source, target = root / FOLDER, machine(cxx)
    sets = SETS.get(target.partition("-")[0], {"base": ()})
    with TemporaryDirectory() as work:
        units = {
            "engine": (program or source / "engine.cpp", ()),
            **{name: (source / "tiles.cpp", (f"-DISA={name}", *f)) for name, f in sets.items()},
        }
        running = []
        for name, (file, flags) in units.items():
            command = [cxx, *COMPILE, *extra, *flags, "-c", str(file), "-o", f"{work}/{name}.o"]
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        said = [process.communicate()[0] for process in running]
        objects = [f"{work}/{name}.o" for name in units]
        lean = () if extra else ("-s",)  # without the names of what is inside
        link = [cxx, *(LINK if program is None else LINK[1:]), *lean, *extra, *objects, "-o", f"{work}/engine.so"]
        linked = subprocess.run(link, capture_output=True, text=True, check=False)
        if linked.returncode:
            out.unlink(missing_ok=True)
            reason = next(
                (line for text in (*said, linked.stderr) for line in text.splitlines() if "error" in line), ""
            )
            return f"native engine: not built, as {cxx} failed ({reason}); all else works without it"
        out.unlink(missing_ok=True)  # not overwritten in place: a process may have it open
        shutil.move(f"{work}/engine.so", out)
    return f"native engine: built by {cxx} for {target} ({', '.join(sets)})"


def machine(cxx: str) -> str:
    """What the compiler builds for, as x86_64-linux-gnu."""
    return subprocess.run([cxx, "-dumpmachine"], capture_output=True, text=True, check=True).stdout.strip()


def platform_tag(library: Path, target: str) -> str:
    """The platforms that a wheel with this library is for: by the newest symbol of glibc that it needs."""
    needed = [int(number) for number in re.findall(rb"GLIBC_2\.(\d+)", library.read_bytes())]
    if "linux" in target and needed:
        return f"manylinux_2_{max(needed)}_{target.partition('-')[0]}"
    return re.sub(r"[-.]", "_", sysconfig.get_platform())


def get_build_hook() -> type:
    """What Hatchling asks for."""
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface

    class NativeHook(BuildHookInterface):
        """Builds before a wheel is made, an editable one too."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            if self.target_name != "wheel":
                return
            library = Path(self.root) / LIBRARY
            self.app.display_info(build(Path(self.root), library))
            if library.exists():
                cxx = compiler()
                build_data["artifacts"].append(str(LIBRARY))
                build_data["pure_python"] = False
                build_data["tag"] = f"py3-none-{platform_tag(library, machine(cxx) if cxx else '')}"

    return NativeHook


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / LIBRARY)
    parser.add_argument("flags", nargs="*", help="more flags of the compiler, after --")
    options = parser.parse_args()
    print(build(Path(__file__).parent, options.out, *options.flags))
