"""What every test shares: one thread per worker, a fixed seed, and uninitialised memory that shows."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("fast", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("fast")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
