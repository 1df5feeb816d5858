"""From a trained detector to detections in the pixels of the original image."""
