"""What is installed fits together, is pinned, and says its licence."""

import re
import subprocess
import sys

import pytest
from tests import dependencies
from tests.dependencies import PAGE, PINS, closure, licence, pins, table

# Under these it may be used with the package; those of a library are those of all its parts.
FREE = {"MIT", "MIT-0", "MIT-CMU", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "Apache-2.0", "PSF-2.0", "MPL-2.0", "ISC",
        "BSL-1.0", "CC0-1.0", "Zlib", "Unlicense"}  # fmt: skip


def test_what_is_installed_fits_together() -> None:
    """But for one requirement that is left out on purpose (docs/licences.md)."""
    result = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False)
    said = [line for line in result.stdout.splitlines() if line != "No broken requirements found."]
    assert all(
        re.fullmatch(r"dynamic-network-architectures \S+ requires timm, which is not installed.", line) for line in said
    ), said


def test_everything_is_pinned() -> None:
    pinned = dict(line.split("==") for line in PINS.read_text().splitlines())
    assert pins().keys() <= pinned.keys(), pins().keys() - pinned.keys()
    assert list(pinned) == sorted(pinned)


def test_every_licence_is_known_and_on_the_page() -> None:
    page = PAGE.read_text()
    for name in pins():
        parts = re.split(r" AND | OR | WITH [\w-]+(?: AND )?", licence(name))
        assert {part.strip("() ") for part in parts if part} <= FREE, (name, licence(name))
        assert f" | {name} | " in page, name


def test_the_package_needs_torch_and_two_of_its_neighbours() -> None:
    needed = dependencies.groups()["the package"]
    assert [requirement.name for requirement in needed] == ["torch", "einops", "typing-extensions"]
    assert all(row.startswith(("| for", "|---", "| the package | ")) for row in list(table())[: 2 + len(closure(needed))])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"License-Expression": "MIT AND Zlib", "License": "no"}, "MIT AND Zlib"),
        ({"License": "The MIT License (MIT)\n\nCopyright"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License", "License": "see file"}, "BSD"),
        ({"License": "Ours"}, "Ours"),
        ({}, "not said"),
    ],
)
def test_a_licence_is_read_from_where_it_is_said(fields: dict[str, str], said: str, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "thing-1.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.4", "Name: thing", "Version: 1"]
    for key, value in fields.items():
        lines.append(f"{key}: " + value.replace("\n", "\n  "))
    (folder / "METADATA").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert licence("thing") == said
