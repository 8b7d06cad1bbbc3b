"""``python -m tests.dependencies``: what is installed for what, under which licence, and the pins of all of it.

From `pyproject.toml` and the metadata of the installed distributions; ``--write`` puts the table into
``docs/licences.md`` and the versions into ``constraints.txt``.
"""

import argparse
import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PAGE, PINS = ROOT / "docs" / "licences.md", ROOT / "constraints.txt"
ELSEWHERE = {"networks"}  # an environment of its own, with its own pins
PLATFORM = ("nvidia-", "cuda-")  # of torch's builds for CUDA, which pin them
SHORT = {
    "apache": "Apache-2.0",
    "bsd": "BSD",
    "mit": "MIT",
    "isc": "ISC",
    "mozilla": "MPL-2.0",
    "python software foundation": "PSF-2.0",
}


def groups() -> dict[str, list[Requirement]]:
    """What `pyproject.toml` asks for: of the package itself, its extras, and the groups of its developers."""
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = content["project"]
    asked = {"the package": project["dependencies"], **project["optional-dependencies"], **content["dependency-groups"]}
    return {name: [Requirement(text) for text in texts] for name, texts in asked.items() if name not in ELSEWHERE}


def closure(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Name -> version of these distributions and all they need that is installed."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        if (key := (canonicalize_name(requirement.name), frozenset(requirement.extras))) in seen:
            continue
        seen.add(key)
        if key[0].startswith(PLATFORM):
            continue
        try:
            installed = distribution(requirement.name)
        except PackageNotFoundError:  # an option of something else, or of another platform
            continue
        found[canonicalize_name(requirement.name)] = installed.version.partition("+")[0]
        for text in installed.requires or ():
            needed = Requirement(text)
            extras = requirement.extras or {""}
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return dict(sorted(found.items()))


def licence(name: str) -> str:
    """The licence of an installed distribution, from the fields that are in use for it, the newest first."""
    metadata = distribution(name).metadata
    if expression := metadata["License-Expression"]:
        return expression
    classified = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier", ()) if c.startswith("License ::")]
    said = metadata["License"] or ""
    texts = [text for text in (*classified, said.strip().partition("\n")[0]) if text and text != "OSI Approved"]
    for text in texts:
        for word, short in SHORT.items():
            if word in text.lower():
                return short
    return texts[0] if texts else "not said"


def table() -> Iterator[str]:
    """The rows of the page: each distribution once, with the first group that needs it."""
    seen: set[str] = set()
    yield "| for | distribution | version | licence |"
    yield "|---|---|---|---|"
    for group, requirements in groups().items():
        for name, version in closure(requirements).items():
            if name not in seen:
                seen.add(name)
                yield f"| {group} | {name} | {version} | {licence(name)} |"


def pins() -> dict[str, str]:
    """Name -> version of everything."""
    return closure(requirement for requirements in groups().values() for requirement in requirements)


def main() -> int:
    """Prints the table, or writes table and pins."""
    parser = argparse.ArgumentParser(prog="python -m tests.dependencies", description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name} and {PINS.name}")
    options = parser.parse_args()
    rows = "\n".join(table())
    print(rows)
    if options.write:
        head, _, _ = PAGE.read_text(encoding="utf-8").partition("| for |")
        PAGE.write_text(f"{head}{rows}\n", encoding="utf-8")
        PINS.write_text("".join(f"{name}=={version}\n" for name, version in pins().items()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
