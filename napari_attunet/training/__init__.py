"""Training: from labelled images to a better model."""
