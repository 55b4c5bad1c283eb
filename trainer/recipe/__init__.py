"""Describes the recipe of a training run: its settings, their ranges, and the rules between them."""
