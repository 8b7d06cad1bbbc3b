"""`python -m benchmarks.gpu` where there is no GPU: the same code at tiny sizes, and no figure that could mislead."""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.gpu import Report

ROOT = Path(__file__).parent.parent


def test_runs_without_a_gpu(tmp_path):
    env = os.environ | {"OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "benchmarks.gpu", "--seconds", "400"]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert len(content["checks"]) == 5
    assert all(row["passed"] for row in content["checks"])
    assert content["summary"]["figures"].startswith("no CUDA figure was measured")
    rows = {row["contestant"]: row for row in content["speed"]}
    assert not any(row["seconds"] or row["peak_mib"] for row in rows.values())
    for name in ("fused", "fused, deterministic", "fused, SupCon", "auto", "tiled", "plain", "SupContrast style"):
        assert rows[name]["value_error"] < 1e-5, name
        assert rows[name]["gradient_error"] < 1e-5, name
    assert rows["fused, kernels alone"]["note"] == ""
    assert [row["kernel"] for row in content["tuning"]] == ["weigh", "credit"]
    assert not any("failed" in row for row in content["tuning"])
    assert not content["aims"]
    assert len(content["speed"]) == len(rows)
    assert (tmp_path / "gpu.csv").read_text().startswith("kind,contestant,formula,batch,n,d,dtype")


def test_of_two_times_the_later_counts(tmp_path):
    """A contestant that is left out the second time keeps its first."""
    report, row = Report(tmp_path), dict.fromkeys(("kind", "contestant", "batch", "n", "d", "dtype"), 1)
    for seconds in (1.0, None, 2.0, None):
        report.add_speed(row | {"seconds": seconds})
    assert [row["seconds"] for row in report.content["speed"]] == [2.0]
