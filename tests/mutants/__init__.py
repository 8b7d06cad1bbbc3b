"""Faults that the tests must notice: `python -m tests.mutants` plants each in a copy of the package and runs its tests."""
