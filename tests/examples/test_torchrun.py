"""The example in two processes, as ``torchrun`` starts them."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
import yaml

from examples.mmwhs import files
from examples.mmwhs.train.config import Schedule
from tests.examples import tiny

ROOT = Path(__file__).parent.parent.parent


def test_two_processes(tmp_path: Path) -> None:
    data = tiny.write_tree(tmp_path / "tiny")
    short = Schedule(steps=2, every=2, batch_size=4, learning_rate=0.01)
    scale = replace(tiny.SCALE, schedules=dict.fromkeys(tiny.SCALE.schedules, short))
    (tmp_path / "scale.yaml").write_text(yaml.safe_dump(asdict(scale)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "examples.mmwhs", "run", "--data", str(data), "--method", "mmgl"]
    command += ["--scale", str(tmp_path / "scale.yaml"), "--labelled", "1", "--out", str(tmp_path / "out")]
    command += ["--accelerator", "cpu", "--devices", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["global", "local", "finetune"]
    weights = files.load(tmp_path / "out" / "1-global" / "weights.pt")
    assert all(value.isfinite().all() for value in weights.values() if isinstance(value, torch.Tensor))
