"""Every block of Python in the README and the guides runs, from top to bottom of its page."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmgl_losses import plugins

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "api").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_blocks_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("page")  # a real one, so that what a page defines can be pickled
    monkeypatch.setitem(sys.modules, "page", module)
    monkeypatch.setattr(plugins, "_registered", {"loss": {}, "head": {}})
    names = vars(module)
    for number, block in enumerate(blocks(page)):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)
    if isinstance(names.get("loss"), torch.Tensor):
        assert names["loss"].isfinite()
    assert "nan" not in capsys.readouterr().out


def test_there_are_blocks():
    assert sum(len(blocks(page)) for page in PAGES) >= 12
