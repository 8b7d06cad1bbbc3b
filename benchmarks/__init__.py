"""Measurements of the library: ``python -m benchmarks``."""
