"""Reads captions from files and tables, and varies them for training."""
