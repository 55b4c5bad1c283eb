"""Defines the kinds of adapter, puts them into a view, and reads and writes them as LoRA files."""
