"""``python -m mmgl_losses check``: right engines are told from wrong ones, and a fault of one ends nothing else."""

import math
import subprocess
import sys
from unittest.mock import patch

import pytest
import torch

from mmgl_losses.contrast import reference
from mmgl_losses.contrast.engines import ENGINES
from mmgl_losses.contrast.problem import Results
from mmgl_losses.testing import engines as check


def test_all_is_well_here():
    done = subprocess.run([sys.executable, "-m", "mmgl_losses", "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    block = done.stdout.split("```")[1]
    assert "torch " in block
    assert "CUDA: none" in block or torch.cuda.is_available()
    number = len(check.cases("cpu"))
    for name in ("reference", "tiled"):
        assert f"{name:<9} on cpu: right on {number} of {number} problems; 2 x 1600 points in " in block
    assert "fused     on cpu: not there. Expected tensors on a CUDA device" in block


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cases_differ_and_have_the_types_that_matter(device):
    found = check.cases(device)
    assert len({case.name for case in found}) == len(found) >= 15
    wanted = {torch.float32} | ({torch.bfloat16, torch.float16} if device == "cuda" else set())
    assert {case.dtype for case in found} == wanted


class Wrong:
    """The reference with one thing wrong."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __getattr__(self, name):
        return getattr(reference, name)

    def forward(self, problem):
        found = reference.forward(problem)
        if self.what == "raises":
            raise RuntimeError("no such kernel\nand more lines")
        if self.what == "value":
            return Results(found.positives, found.negatives + 1e-3, *found[2:])
        return found

    def backward(self, problem, upstream, needed):
        first, second = reference.backward(problem, upstream, needed)
        if self.what == "gradient":
            first = first * (1 + 1e-3)
        return first, second


@pytest.mark.parametrize("what", ["value", "gradient", "raises", "nothing"])
def test_a_wrong_engine_is_noticed(what):
    with (
        patch.dict(ENGINES, {"tiled": Wrong(what)}),
        patch.object(check, "cases", lambda device: [check.Case("plain")]),
        patch.object(check, "TIMED", {"cpu": (1, 20)}),
    ):
        found = list(check.rows("tiled", "cpu"))
        verdict, wrong = check.judged(found, None, "cpu")
    assert bool(wrong) == (what != "nothing")
    assert verdict.startswith("right on 1 of 1" if what == "nothing" else "right on 0 of 1")
    if what == "raises":
        assert wrong == ["plain: RuntimeError: no such kernel"]


def test_missing_values_are_wrong():
    one, nan, none = torch.ones(1).double(), torch.tensor([math.nan]).double(), torch.tensor([-math.inf]).double()
    assert check.worst([one], [one], [one], torch.float32) == 0
    assert check.worst([nan], [one], [one], torch.float32) == math.inf
    assert check.worst([none], [one], [one], torch.float32) == math.inf
    assert check.worst([none], [none], [none], torch.float32) == 0


@pytest.mark.parametrize(("code", "said"), [("import os; print('{}'); os.abort()", "ended with status"), ("1", None)])
def test_a_process_that_dies_is_a_line(code, said):
    usual = subprocess.Popen
    with patch.object(subprocess, "Popen", lambda command, **kwargs: usual([sys.executable, "-c", code], **kwargs)):
        found, end = check.apart("tiled", "cpu")
    assert found == ([{}] if said else [])
    assert (end is None) if said is None else end.startswith(said)


def test_a_process_that_hangs_is_stopped():
    usual, code = subprocess.Popen, "import time; print('{}', flush=True); time.sleep(60)"
    with (
        patch.object(subprocess, "Popen", lambda command, **kwargs: usual([sys.executable, "-c", code], **kwargs)),
        patch.object(check, "LIMIT", 1.0),
    ):
        found, end = check.apart("tiled", "cpu")
    assert (found, end) == ([{}], "stopped after 1 s")
