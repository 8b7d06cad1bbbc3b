"""What every test shares: one thread per worker, a fixed seed, and uninitialised memory that shows."""

import pytest
import torch
from hypothesis import Phase, settings

settings.register_profile("fast", deadline=None, max_examples=40, derandomize=True)
# For faults that are planted: the first failure is enough, and need not be small.
settings.register_profile("mutants", settings.get_profile("fast"), phases=[Phase.generate], report_multiple_bugs=False)
settings.load_profile("fast")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
