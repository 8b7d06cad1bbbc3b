"""What every test shares: one thread per worker, a fixed seed, and uninitialised memory that shows."""

from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

# A source distribution holds the package and its tests, but not what these are about.
NEEDS = {
    "examples": ["examples", "faults"],
    "benchmarks": [
        "test_benchmarks.py",
        "test_fused_compile.py",
        "test_gpu_benchmark.py",
        "test_launches.py",
        "test_native.py",
        "test_precision.py",
    ],
    "docs": ["test_dependencies.py", "test_documents.py", "test_mutants.py"],
}
ROOT = Path(__file__).parent.parent
collect_ignore = [path for folder, paths in NEEDS.items() if not (ROOT / folder).exists() for path in paths]

settings.register_profile("fast", deadline=None, max_examples=40, derandomize=True)
# For faults that are planted: the first failure is enough, and need not be small.
settings.register_profile("mutants", settings.get_profile("fast"), phases=[Phase.generate], report_multiple_bugs=False)
settings.load_profile("fast")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
