"""Never further from float64 than twice plain torch in the same type, and overflow nowhere."""

import pytest
import torch

from benchmarks.precision import INPUTS, contestants, error
from mmgl_losses.contrast import pair_terms
from tests.problems import IMPLEMENTATIONS

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
@pytest.mark.parametrize("name", INPUTS)
def test_at_most_twice_as_far_off_as_plain_torch(name, temperature, dtype):
    """Up to some roundings of the logits for a value, and one of the forces for a gradient.

    Plain torch may give NaN (it divides by lengths of 0); the library never does.
    """
    if name == "lengths 1e-30 to 1e30" and dtype == torch.float16:
        return  # beyond the type itself
    errors = {who: error(run, name, 60, temperature, dtype) for who, run in contestants().items()}
    plain = errors.pop("plain torch")
    for ours in errors.values():
        assert not ours.value > 2 * plain.value + 4 * EPS / temperature
        assert not ours.gradient > 2 * plain.gradient + EPS * ours.forces
        assert ours.value == ours.value
        assert ours.gradient == ours.gradient


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_running_sums_keep_their_digits(impl):
    """Positives that are a range of ids come from differences of running sums over all keys before them."""
    z = torch.nn.functional.normalize(torch.randn(3000, 4) + 3, dim=-1)
    ids = torch.arange(3000.0)
    got = pair_terms(z, ids, temperature=0.07, tolerance=1.0, impl=impl).positive_sum
    wanted = pair_terms(z.double(), ids, temperature=0.07, tolerance=1.0, impl=impl).positive_sum
    torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=0)
