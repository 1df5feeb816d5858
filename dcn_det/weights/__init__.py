"""Checkpoints, pretrained weights, and conversion of weights from other frameworks."""
