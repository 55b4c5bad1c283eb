"""Captions as text: read from files and tables, and varied for training."""
