"""Measurements: how fast and how good, next to peers; medians, and ratios from one run."""
