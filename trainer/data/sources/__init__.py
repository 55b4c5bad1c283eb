"""Finds images and captions wherever they come from. There is one file for each kind of source."""
