"""Second stages: from feature maps and proposals to classes and boxes."""
