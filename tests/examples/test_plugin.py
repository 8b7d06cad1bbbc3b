"""A third party's distribution, from its source to the pipeline: built, installed beside ours, named in a configuration.

The environment is new and holds the two wheels; what they depend on is lent by the environment of the tests, through a
path file, so that nothing is downloaded.
"""

import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from examples.mmwhs import files
from tests.examples.tiny import SCALE, write_tree

ROOT = Path(__file__).parents[2]

FOUND = """
import mmgl_losses, mmgl_focal_plugin, pytest
from mmgl_losses import plugins

for package in (mmgl_losses, mmgl_focal_plugin):
    assert ENVIRONMENT in package.__file__, package.__file__
assert "FocalLocalContrast" in plugins.available("loss")
assert "BottleneckHead" in plugins.available("head")
assert plugins.create("head", "BottleneckHead", 16, stride=2).stride == 2
with pytest.raises(ValueError, match="got 'BottleneckHaed'. Did you mean 'BottleneckHead'?"):
    plugins.create("head", "BottleneckHaed", 16)
with pytest.raises(ValueError, match="to be at least 1, got 0.5."):
    plugins.create("loss", "FocalLocalContrast", gamma=0.5)
raise SystemExit(pytest.main(["-q", "-p", "no:cacheprovider", "-W", "error", TESTS]))
"""

CLASHES = """
import pytest
from mmgl_losses import plugins

assert "Broken" in plugins.available("head")
assert plugins.create("head", "BottleneckHead", 16) is not None
with pytest.raises(RuntimeError) as caught:
    plugins.create("head", "Broken", 16)
assert str(caught.value) == (
    "Expected the head 'Broken' of other-plugin to load from other_plugin:Broken, "
    "got ModuleNotFoundError(\\"No module named 'other_plugin'\\")."
)
with pytest.raises(ValueError) as caught:
    plugins.available("loss")
message = str(caught.value)
assert message.startswith("Expected one distribution to offer the loss 'FocalLocalContrast', got it from ")
assert "mmgl-focal-plugin" in message and "other-plugin" in message and message.endswith("Uninstall one.")
assert plugins.create("loss", "MultiScaleLocalSupCon") is not None
"""


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment in which both wheels are installed."""
    here = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(ROOT / "examples" / "plugin", here / "plugin")
    for project in (ROOT, source):
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", here / "dist", project, cwd=here)
    run(sys.executable, "-m", "venv", "--without-pip", here / "venv", cwd=here)
    python = here / "venv" / "bin" / "python"
    wheels = sorted((here / "dist").glob("*.whl"))
    run(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        *wheels,
        cwd=here,
    )
    lent = Path(sysconfig.get_path("purelib"))
    packages = next((here / "venv" / "lib").glob("python*/site-packages"))
    (packages / "lent.pth").write_text(f"{lent}\n")
    return python


def test_it_is_found_and_keeps_the_laws(environment: Path) -> None:
    """Its own tests run in that environment, as its author would run them."""
    here = environment.parents[2]
    values = f"ENVIRONMENT, TESTS = {str(here / 'venv')!r}, {str(here / 'plugin' / 'tests')!r}\n"
    assert "6 passed" in run(environment, "-c", values + FOUND, cwd=here)


def test_the_pipeline_uses_it_by_configuration_alone(environment: Path) -> None:
    """The pipeline is a copy away from the checkout, so that the installed package is the one that runs."""
    here = environment.parents[2]
    shutil.copytree(ROOT / "examples" / "mmwhs", here / "examples" / "mmwhs")
    short = {kind: replace(schedule, steps=2, every=2) for kind, schedule in SCALE.schedules.items()}
    (here / "tiny.yaml").write_text(yaml.safe_dump(asdict(replace(SCALE, schedules=short))))
    data = write_tree(here / "tiny")
    where = run(environment, "-c", "import mmgl_focal_plugin as p; print(p.METHODS)", cwd=here).strip()
    command = ["-m", "examples.mmwhs", "run", "--data", data, "--method", f"{where}/focal.yaml", "--labelled", "2"]
    run(environment, *command, "--scale", "tiny.yaml", "--out", "out", "--accelerator", "cpu", cwd=here)
    assert files.read_json(here / "out" / "metrics.json")["method"] == "Focal local contrast"
    chosen = yaml.safe_load((here / "out" / "config.yaml").read_text())["method"]["stages"][0]
    assert chosen["loss"]["name"] == "FocalLocalContrast"
    assert chosen["head"]["name"] == "BottleneckHead"


def test_another_distribution_that_clashes_or_is_broken(environment: Path) -> None:
    """What an installer leaves of a distribution is enough for its entry points to be seen."""
    here = environment.parents[2]
    packages = next((here / "venv" / "lib").glob("python*/site-packages"))
    other = packages / "other_plugin-1.0.dist-info"
    other.mkdir()
    try:
        (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other-plugin\nVersion: 1.0\n")
        (other / "entry_points.txt").write_text(
            "[mmgl_losses.losses]\nFocalLocalContrast = other_plugin:Loss\n\n"
            "[mmgl_losses.heads]\nBroken = other_plugin:Broken\n"
        )
        run(environment, "-c", CLASHES, cwd=here)
    finally:
        shutil.rmtree(other)
