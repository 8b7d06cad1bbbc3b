"""Faults while the example pipeline runs: ``python -m tests.faults --kills 20``."""
