"""Training itself: what is trained on what, one step, and the state that a step leaves."""
