"""Captions images with models that look at them: the engines, what is done with their words, a run over a dataset."""
