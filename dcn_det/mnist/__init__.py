"""Scaled MNIST: what distinguishes deformable convolution from Spatial Transformers and Active Convolution."""
