"""`python -m benchmarks.gpu` where there is no GPU: the same code at tiny sizes, and no figure that could mislead."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_runs_without_a_gpu(tmp_path):
    env = os.environ | {"OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", "--seconds", "60"]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["checks"]
    assert all(row["passed"] for row in content["checks"])
    assert content["summary"]["figures"].startswith("no CUDA figure was measured")
    rows = {row["name"]: row for row in content["speed"]}
    assert len(rows) == 8
    assert not any("ms" in row for row in rows.values())
    for name in ("fused, kernels alone", "fused, deterministic", "tiled", "dense", "dense, compiled"):
        assert rows[name]["loss_apart"] < 1e-4
        assert rows[name]["gradient_apart"] < 1e-4
    assert "NotImplementedError" in rows["flex_attention"]["failed"]
    assert (tmp_path / "gpu.csv").read_text().startswith("name,batch,n,d,type")
