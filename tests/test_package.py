"""The wheel: what is in it, and that it works in a clean environment away from the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import hatch_build
from mmgl_losses.contrast import engines
from tests.problems import NATIVE

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


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    words, env = [str(c) for c in command], {**os.environ, **env}
    result = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_tells_what_is_there():
    """`python -m mmgl_losses`: versions, and of each engine whether it is there or why not."""
    said = run(sys.executable, "-m", "mmgl_losses", cwd=ROOT)
    assert said.startswith("mmgl-losses ")
    lines = {line.split()[0]: line for line in said.splitlines()[2:]}
    assert list(lines) == list(engines.ENGINES)
    assert "for impl='fused'" in lines["fused"]
    assert "there" in lines["reference"]
    assert ("takes it for few and many points" in lines["native"]) == NATIVE


@pytest.mark.parametrize("cxx", [None, "false"])
def test_builds_without_a_compiler_that_works(cxx, tmp_path, monkeypatch):
    """Nothing fails; one line says why there is no native engine, and none that is old is left."""
    out = tmp_path / "engine.so"
    out.touch()
    monkeypatch.setattr(hatch_build, "compiler", lambda: cxx)
    monkeypatch.setattr(hatch_build, "machine", lambda cxx: "x86_64-linux-gnu")
    said = hatch_build.build(ROOT, out)
    assert said.startswith("native engine: not built, as ")
    assert "\n" not in said
    assert not out.exists()


def test_the_hook_can_be_left_out(tmp_path):
    """The pure wheel, which any platform takes."""
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    run(*command, cwd=tmp_path, HATCH_BUILD_NO_HOOKS="true")
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())


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
    if hatch_build.compiler():
        wanted.add(str(hatch_build.LIBRARY))
    assert present == wanted
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("METADATA"))).decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_holds_the_package_and_its_tests(wheel):
    """And no file of another folder that is called like one at the root: what is about that folder would be tested."""
    (source,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    texts = {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "constraints.txt"}
    assert tops == texts | {"mmgl_losses", "tests", "conftest.py", "hatch_build.py", "pyproject.toml"}


def test_works_in_a_clean_environment(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    run(python, "-m", "pip", "check", cwd=tmp_path)
    assert run(python, "-W", "error::DeprecationWarning", "-c", TRIAL, cwd=tmp_path).strip()
