"""Faults are planted where they say, in every module, and some of them are noticed here and now.

All of them: ``python -m tests.mutants``.
"""

import subprocess
import sys
from pathlib import Path

from tests.mutants.__main__ import ROOT, place
from tests.mutants.table import MUTANTS

# What no fault is planted in: names only.
WITHOUT = {"__init__", "checks/__init__", "testing/__init__", "contrast/fused/__init__"}


def test_every_text_is_found_once_and_every_test_exists():
    for mutant in MUTANTS:
        assert mutant.old != mutant.new
        place(mutant)
        for test in mutant.tests:
            file, _, name = test.partition("::")
            assert f"def {name or 'test_'}" in (ROOT / file).read_text(), test


def test_there_are_faults_in_all_that_computes():
    files = {str(place(mutant).relative_to(ROOT / "mmgl_losses").with_suffix("")) for mutant in MUTANTS}
    folders = {file.split("/")[0] for file in files}
    there = {path.stem for path in (ROOT / "mmgl_losses").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert there - folders - WITHOUT - {"__pycache__"} == set()
    assert len(MUTANTS) >= 90


def test_some_are_noticed():
    """A few of them, of three modules, in a process that has never seen the package."""
    words = ["the 2 of the numerator", "the floor is the worst", "hooks stay after close"]
    command = [sys.executable, "-m", "tests.mutants", "--jobs", "2", *words]
    result = subprocess.run(command, cwd=Path(ROOT), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 of 3 killed" in result.stdout
