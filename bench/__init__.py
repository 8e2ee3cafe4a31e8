"""Benchmarks: the same load against several servers in one run, side by side."""
