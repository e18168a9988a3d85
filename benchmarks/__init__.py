"""Benchmarks: one question each. Each prints a table and writes JSON to `benchmarks/results`."""
