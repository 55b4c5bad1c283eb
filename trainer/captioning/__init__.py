"""Captions from models that look at pictures: the engines, what is done with their words, and a run over a dataset."""
