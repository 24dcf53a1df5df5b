"""Measurements and re-enacted experiments of papers. Each module is a program: `python -m benchmarks.MODULE --help`."""
