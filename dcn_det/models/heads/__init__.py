"""Second stages: predict classes and boxes from feature maps and proposals."""
