"""Capacity benchmarks: a simulated day of traffic, a soak test, and memory use."""
