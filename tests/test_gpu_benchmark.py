"""`python -m benchmarks.gpu` where there is no GPU: the same code at tiny sizes, and no figure that could mislead."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu, gpu_items, gpu_summary
from benchmarks.gpu import Phase, Runner
from benchmarks.kinds import DIMS
from benchmarks.local import LOCAL

ROOT = Path(__file__).parent.parent


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


def test_runs_without_a_gpu(tmp_path):
    """Every phase of both tries, each in processes of its own."""
    env = os.environ | {"OUT": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    names = list(dict.fromkeys(phase.name for phases in gpu.TRIES.values() for phase in phases))
    command = [sys.executable, "-m", "benchmarks.gpu", "--patience", "10", "--seconds", "1500", "--only", *names]
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + (tmp_path / "errors.txt").read_text()[-3000:]
    found = rows_of(tmp_path)
    assert {row["phase"] for row in found} == {*names} - {"counters", "float32"}
    assert {row["state"] for row in found} == {"begun", "done"}
    done = [row for row in found if row["state"] == "done"]
    checks = [row for row in done if "passed" in row]
    assert len(checks) >= 7
    assert all(row["passed"] for row in checks)
    assert {row["kernel"] for row in done if row["phase"] == "kernels"} == {"credit", "weigh", "rows"}
    times = [value for row in done for key, value in row.items() if key in ("seconds", "eager", "graph", "host")]
    assert len(times) == 1  # of the first call, which is no figure
    raced = {row["contestant"]: row for found in done for row in found.get("rows", ())}
    for name in ("fused", "plain"):
        assert raced[name]["value_error"] < 1e-5
        assert raced[name]["gradient_error"] < 1e-5
    assert "no CUDA figure was measured" in result.stdout
    assert (tmp_path / "summary.txt").read_text().startswith("SUMMARY\n")
    assert len([*tmp_path.iterdir()]) <= 8  # more files do not come back from where it runs


# A phase of five items: the second fails, the third ends its process, the fourth hangs.
FAULTS = """
import os, sys, time
from benchmarks import gpu_items, gpu_phase
def fail(): raise ValueError("wrong" + chr(10) + "and more")
def items(setting):
    yield gpu_items.Item("good", lambda: {"passed": True})
    yield gpu_items.Item("fails", fail)
    yield gpu_items.Item("dies", os.abort)
    yield gpu_items.Item("hangs", lambda: time.sleep(600))
    yield gpu_items.Item("last", lambda: {"passed": True})
def nothing(setting):
    raise OSError("no phase")
    yield
gpu_items.PHASES.update(faults=items, nothing=nothing)
sys.exit(gpu_phase.main(sys.argv[1:]))
"""


def test_nothing_is_lost_on_a_fault(tmp_path, monkeypatch):
    runner = Runner(tmp_path, time.monotonic() + 300)
    monkeypatch.setattr(runner, "program", ("-c", FAULTS), raising=False)
    runner.phase(Phase("faults", 200, 25))
    ends = {row["item"]: row for row in runner.rows() if row["state"] != "begun"}
    assert {name: row["state"] for name, row in ends.items()} == {
        "good": "done", "fails": "failed", "dies": "failed", "hangs": "failed", "last": "done",
    }  # fmt: skip
    assert ends["fails"]["why"] == "ValueError: wrong"
    assert ends["dies"]["why"].startswith("status -6")
    assert ends["hangs"]["why"].startswith("stopped: nothing for 25 s")
    assert "and more" in (tmp_path / "errors.txt").read_text()
    runner.phase(Phase("nothing", 60, 60))
    assert runner.rows()[-1]["why"] == "status 1: OSError: no phase"
    lines, good = gpu_summary.summary(runner.rows())
    assert not good
    assert "checks: 2 of 2 right; left out: 0" in lines
    assert sum(line.startswith("FAILED") for line in lines) == 4


def test_usual_tiles_are_timed_before_others(tmp_path):
    """At every size, the largest that is aimed at first; should the phase end early, these are the figures that count."""
    setting = gpu_items.Setting(tmp_path, 0.0, cuda=True)
    names = [item.name for item in gpu_items.PHASES["kernels"](setting)]
    usual = [name for name in names if name.endswith("usual")]
    assert names[: len(usual)] == usual
    assert usual[:3] == [f"{kernel} 6400 x 64 usual" for kernel in ("credit", "weigh", "rows")]
    assert len(usual) == len(gpu_items.SIZES) * len(DIMS) * 3
    assert {name for group in gpu_items.OTHERS for name in group} <= {*LOCAL.contestants}


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 330), (2, 380)])
def test_phases_fit_into_the_time_of_a_try(attempt, seconds):
    assert sum(phase.whole for phase in gpu.TRIES[attempt]) <= seconds


def test_what_no_time_is_left_for_is_said(tmp_path):
    runner = Runner(tmp_path, time.monotonic())
    runner.phase(Phase("machine", 10, 10))
    assert runner.rows() == [{"phase": "machine", "item": "the rest", "state": "left out"}]


CEILINGS = {
    "phase": "machine",
    "item": "ceilings",
    "state": "done",
    "bf16_tflop_s": 800.0,
    "tf32_tflop_s": 400.0,
    "exp_t_s": 3.7,
}


def measured(seconds: float, name: str, n: int = 6400, **more) -> dict:
    return {"batch": 8, "n": n, "d": 64, "dtype": "bfloat16", "contestant": name, "seconds": seconds} | more


@pytest.mark.parametrize("rate", [800.0, 300.0])
def test_the_summary_holds_figures_against_aims(rate):
    """At 6,400 x 64 the floor is .133 ms (1.5 exponentials of 8 x 6,400^2 pairs at 3.7 T/s)."""
    rows = [
        CEILINGS | {"bf16_tflop_s": rate},
        {"phase": "headline", "item": "a", "state": "done", "rows": [measured(0.2e-3, "fused, kernels alone")]},
        {"phase": "competitors", "item": "b", "state": "done",
         "rows": [measured(0.5e-3, "fused", gradient_error=2e-3), measured(0.6e-3, "flex_attention"), measured(30e-3, "plain")]},
        {"phase": "headline", "item": "f", "state": "done", "rows": [measured(0.1, "fused", 110_592, peak_mib=8000.0)]},
        {"phase": "kernels", "item": "c", "state": "done", "kernel": "credit", "n": 6400, "d": 64, "tile": "usual", "seconds": 1e-4},
        {"phase": "kernels", "item": "d", "state": "done", "kernel": "credit", "n": 6400, "d": 64, "tile": [64, 64, 4, 2], "seconds": 5e-5},
        {"phase": "module", "item": "e", "state": "done", "formula": "supcon", "n": 1600, "d": 64, "eager": 1e-3, "graph": 90e-6},
    ]  # fmt: skip
    lines, good = gpu_summary.summary(rows)
    assert good
    text = "\n".join(lines)
    best = "credit 6400 x 64: 0.1000 ms (44% of the floor); best [64, 64, 4, 2] 0.0500 ms (89%)"
    assert (best in text) == (rate == 800)
    assert ("kernels alone 6400 x 64 bfloat16: 0.2000 ms, 66% of the floor: met" in text) == (rate == 800)
    assert ("1.2 times as fast as flex_attention: MISSED (aim 1.5)" in text) == (rate == 800)
    assert ("60 times as fast as plain: met" in text) == (rate == 800)
    assert ("in a graph: 90 us: MISSED" in text) == (rate == 800)
    assert "gradient in bfloat16 off by 0.002: met (aim 0.003)" in text
    assert "110592 x 64: 1000 MiB an image: met (aim 1024)" in text


def test_times_count_where_the_ceilings_are_missing():
    """The process that measures them was stopped: an H100's stand in, and the summary says so."""
    rows = [
        {"phase": "machine", "item": "versions", "state": "done", "device": "NVIDIA H200"},
        {"phase": "kernels", "item": "c", "state": "done", "kernel": "credit", "n": 6400, "d": 64, "tile": "usual", "seconds": 1e-4},
    ]  # fmt: skip
    text = "\n".join(gpu_summary.summary(rows)[0])
    assert "an H100's stand in" in text
    assert "credit 6400 x 64: 0.1000 ms (44% of the floor)" in text
    rows[0]["device"] = "none: interpreted on the CPU"
    assert "no CUDA figure was measured" in gpu_summary.summary(rows)[0]


def test_the_summary_stays_short():
    rows = [CEILINGS] + [
        {"phase": "kernels", "item": str(i), "state": "done", "kernel": "credit", "n": i, "d": 64, "tile": "usual", "seconds": 1e-4}
        for i in range(1, 100)
    ] + [{"phase": "problems", "item": str(i), "state": "failed", "why": "x" * 300} for i in range(50)]  # fmt: skip
    lines, good = gpu_summary.summary(rows)
    assert len(lines) <= 60
    assert not good
    assert max(map(len, lines)) <= 200
