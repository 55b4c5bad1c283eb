"""Trains. Decides what is trained on which data, takes the steps, and saves the state that a step leaves."""
