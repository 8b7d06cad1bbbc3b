"""The fused implementation on a machine without a GPU: in Triton's interpreter, and what it says without Triton."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from mmgl_losses.contrast import fused, pair_logsumexp, tiled
from mmgl_losses.contrast.engines import ENGINES

Z, IDS = torch.eye(4), torch.tensor([0, 0, 1, 1])


def test_in_the_interpreter():
    """In a process of its own: Triton reads the variable when it is imported, and kernels stay interpreted."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "interpreted_fused.py"]
    result = subprocess.run(
        command, cwd=Path(__file__).parent, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-8000:]


def test_asked_for_without_triton():
    said = r"Expected Triton to be installed.*mmgl-losses\[triton\]"
    with patch.object(fused, "_INSTALLED", False), pytest.raises(ValueError, match=said):
        pair_logsumexp(Z, IDS, temperature=1.0, impl="fused")


def test_asked_for_on_the_cpu():
    """In a fresh process, as another test may have imported Triton one way or the other."""
    code = (
        "import torch\nfrom mmgl_losses.contrast import pair_logsumexp\n"
        "try: pair_logsumexp(torch.eye(4), torch.zeros(4), temperature=1.0, impl='fused')\n"
        "except ValueError as error: print(error)"
    )
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("Expected tensors on a CUDA device for impl='fused', got them on cpu. Use impl=")


def test_never_chosen_unasked():
    z = torch.randn(600, 4)
    with patch.object(fused, "forward", side_effect=AssertionError):
        pair_logsumexp(z, torch.arange(600) % 3, temperature=1.0)


@pytest.mark.parametrize("value", ["bfloat16", torch.int64])
def test_a_bad_precision(value):
    with pytest.raises(TypeError, match="Expected `precision` to be None or a floating-point type"):
        pair_logsumexp(Z, IDS, temperature=1.0, precision=value)


def test_half_precision_features_are_multiplied_in_their_type():
    """The losses normalise in float32, and hand on which type the features came in."""
    from mmgl_losses.functional import local_supcon

    labels, seen = torch.tensor([[0, 0, 1, 1]]), []

    class StandIn:
        NORMALISES = False

        def forward(self, problem):
            seen.append((problem.anchors.dtype, problem.precision))
            return tiled.forward(problem)

        def refuses(self, problem):
            return None

    with patch.dict(ENGINES, {"fused": StandIn()}):
        for dtype in (torch.bfloat16, torch.float32):
            local_supcon(torch.randn(1, 3, 4, dtype=dtype), labels, impl="fused")
    assert seen == [(torch.float32, torch.bfloat16), (torch.float32, torch.float32)]
