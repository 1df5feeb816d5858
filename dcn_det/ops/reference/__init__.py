"""The operators in plain PyTorch: their definition, and the tier without compiled kernels."""
