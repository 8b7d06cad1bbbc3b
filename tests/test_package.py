"""The wheel: what is in it, and that it works in a clean environment away from the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

TRIAL = """
import pathlib, torch, mmgl_losses
from mmgl_losses import *
from mmgl_losses import MultiScaleGlobalContrast, GlobalHead, UNet, attach_heads, discover_stages
assert "site-packages" in mmgl_losses.__file__, mmgl_losses.__file__
assert (pathlib.Path(mmgl_losses.__file__).parent / "py.typed").exists()
net, example = UNet(1, 3, channels=(4, 8, 8, 16, 16)), torch.rand(2, 1, 32, 32)
stages = discover_stages(net, example)
tapped = attach_heads(net, example, {name: GlobalHead for name in stages.encoder[-3:]})
_, embeddings = tapped(torch.cat([example, example.flip(3)]))
loss = MultiScaleGlobalContrast()(embeddings)
loss.backward()
assert loss.isfinite()
print(mmgl_losses.__version__)
"""


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    run(sys.executable, "-m", "twine", "check", "--strict", *out.iterdir(), cwd=out)
    return next(out.glob("*.whl"))


def test_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"mmgl_losses", f"{wheel.name.split('-py3')[0]}.dist-info"}
    present = {name for name in names if name.startswith("mmgl_losses/")}
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "mmgl_losses").rglob("*") if p.suffix in (".py", ".typed")}
    assert present == wanted
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_works_in_a_clean_environment(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    assert run(python, "-W", "error::DeprecationWarning", "-c", TRIAL, cwd=tmp_path).strip()
