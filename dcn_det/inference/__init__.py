"""Detection with trained detectors; boxes are in pixels of the original image."""
