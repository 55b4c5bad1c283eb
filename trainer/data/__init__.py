"""Finds images and captions, checks them, cuts images to size, caches what was encoded, and reports on a dataset."""
