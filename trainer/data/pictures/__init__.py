"""Reads pictures, cuts them to size, changes and masks them."""
