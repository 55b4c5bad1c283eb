"""Describes a loaded model as training sees it: who holds it, of which family it is, and the view that is trained."""
