"""Benchmarks: the functions beside the guide's way, the peers and the processor's limit."""
