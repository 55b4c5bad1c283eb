"""Reads the prompts of sample pictures, and puts the pictures into grids."""
