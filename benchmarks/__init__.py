"""Benchmarks: start servers, send load, compare them and record the results."""
