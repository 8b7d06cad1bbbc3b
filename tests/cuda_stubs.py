"""Empty libraries in place of CUDA's, so that a build of torch for CUDA starts on a machine without them.

Older builds of torch on the package index are for CUDA and need gigabytes of its libraries to be imported, though
nothing of them runs on a CPU. `write` puts small libraries of the same names beside torch's own: every function in
them returns 100, "no CUDA device".
"""

import re
import subprocess
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100  # cudaErrorNoDevice
OWN = re.compile("_*(cu|nv|nccl)")  # how CUDA's functions begin; Python's own are undefined in torch, too


def write(folder: Path) -> list[str]:
    """Write what the libraries in `folder`, ``torch/lib``, lack; the names of what was written."""
    libraries = [path for path in folder.glob("*.so*") if path.is_file()]
    present, missing, defined, wanted = {path.name for path in libraries}, set(), set(), set()
    for library in libraries:
        listed = _run("ldd", str(library))
        missing |= {line.split()[0] for line in listed.splitlines() if "not found" in line and "=>" in line}
        for line in _run("nm", "-D", str(library)).splitlines():
            *_, kind, symbol = line.split()
            name, _, version = symbol.replace("@@", "@").partition("@")
            if kind == "U":
                wanted.add((name, version))
            elif kind not in "wv":
                defined.add(name)
    versions = defaultdict(set)
    for name, version in wanted:
        if name not in defined and OWN.match(name):
            versions[version].add(name)
    missing -= present
    node = _versions(libraries)
    for library in sorted(missing):
        # Other symbols may be of any of the libraries; to the loader the first one that has them will do.
        version = node.get(library, "")
        _link(folder / library, versions[version] | versions[""], version)
    return sorted(missing)


def _versions(libraries: list[Path]) -> dict[str, str]:
    """The version that symbols of each library have, from what torch's ask for."""
    found, library = {}, ""
    for line in "".join(_run("objdump", "-p", str(path)) for path in libraries).splitlines():
        if match := re.match(r"\s*required from (.+):", line):
            library = match[1]
        elif match := re.match(r"\s*0x\w+ 0x\w+ \d+ (\S+)", line):
            found[library] = match[1]
    return found


def _link(out: Path, symbols: set[str], version: str) -> None:
    code = "".join(f"int {name}(void) {{ return {NO_DEVICE}; }}\n" for name in sorted(symbols))
    script = out.with_suffix(".map")
    script.write_text(f"{version} {{ global: *; }};\n")
    command = [
        "gcc",
        "-shared",
        "-fPIC",
        "-w",
        "-fno-builtin",
        "-x",
        "c",
        "-",
        "-o",
        str(out),
        f"-Wl,-soname,{out.name}",
    ]
    if version:
        command.append(f"-Wl,--version-script={script}")
    subprocess.run(command, input=code, text=True, check=True)
    script.unlink()


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
