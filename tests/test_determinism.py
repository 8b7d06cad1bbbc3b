"""The same input, the same bits on the CPU; how much the number of threads and the size of a tile may change."""

import json
import os
import subprocess
import sys

import pytest
import torch

CODE = """
import json, sys, torch
from mmgl_losses.functional import global_contrast, local_supcon, soft_dice
torch.manual_seed(0)
x, y = torch.randn(2, 16, 12, 12), torch.randint(4, (2, 12, 12))
runs = [lambda x, i=i: local_supcon(x, y, impl=i) for i in ("tiled", "reference", "auto")]
runs += [lambda x: local_supcon(x, y, pairs="batch"), lambda x: global_contrast(x[:, :, ::3].flatten(2).mT.flatten(0, 1))]
runs += [lambda x: soft_dice(x[:, :4], y, cross_entropy=0.5)]
found = {}
for threads in map(int, sys.argv[1:]):
    torch.set_num_threads(threads)
    found[threads] = []
    for run in runs:
        leaf = x.clone().requires_grad_()
        value = run(leaf)
        gradient = torch.autograd.grad(value, leaf)[0]
        bits = value.item().hex(), gradient.view(torch.int32).long().sum().item()
        found[threads].append([*bits, gradient.norm().item(), value.item()])
print(json.dumps(found))
"""


def outcome(*threads: int) -> dict[str, list]:
    """Of each loss: its bits, a sum of the bits of its gradient, the norm of that, and the value; in a fresh process."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    env["OMP_WAIT_POLICY"] = "passive"  # threads that wait leave the cores to other processes
    command = [sys.executable, "-c", CODE, *map(str, threads)]
    return json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)


def test_bits_repeat_and_threads_only_round():
    first, second = outcome(1), outcome(1, 2)
    assert first["1"] == second["1"]
    for a, b in zip(second["1"], second["2"], strict=True):
        assert a[2:] == pytest.approx(b[2:], rel=2e-6)


def test_bits_repeat_in_a_process():
    """With other losses in between, and with gradients or without: no state."""
    from mmgl_losses.functional import local_supcon

    x, y = torch.randn(1, 8, 20, 20), torch.randint(3, (1, 20, 20))
    first = local_supcon(x, y, impl="tiled")
    local_supcon(x.double(), y)
    local_supcon(torch.full_like(x, torch.nan), y, impl="tiled")
    with torch.no_grad():
        assert torch.equal(local_supcon(x, y, impl="tiled"), first)
