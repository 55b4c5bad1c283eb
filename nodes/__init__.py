"""Defines what a person sees on the canvas: one file for each thing a person does."""
