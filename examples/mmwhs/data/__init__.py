"""Volumes and slices: what a data set is, who may be trained on, and what training gets of it."""
