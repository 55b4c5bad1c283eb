"""Writes files whole or not at all, and imports packages when they are needed."""
