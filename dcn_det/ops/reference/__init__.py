"""The operators in plain PyTorch: the definition to read, and the tier for devices without compiled kernels."""
