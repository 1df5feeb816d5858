"""The operators in plain PyTorch: the definition to read, and the tier without compiled kernels."""
