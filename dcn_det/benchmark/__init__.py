"""Benchmarks of ``tools/benchmark.py``: one module per command, with ``main(argv) -> exit code``."""
