"""What `speed.py` measures, part by part."""
