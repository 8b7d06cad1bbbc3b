"""Every block of Python in the README and the guides runs, from top to bottom of its page."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)
    if page.name == "guide.md":
        assert all(isinstance(names[name], torch.Tensor) and names[name].isfinite() for name in ("loss",))
    assert "nan" not in capsys.readouterr().out


def test_there_are_blocks():
    assert sum(len(blocks(page)) for page in PAGES) >= 12
