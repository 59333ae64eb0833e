"""Benchmarks: each measures this library and a straightforward way in one run, in turns, and prints the ratio."""
