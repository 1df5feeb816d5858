"""What ``tools/benchmark.py`` measures: one module for each command, with ``main(argv) -> exit code``."""
