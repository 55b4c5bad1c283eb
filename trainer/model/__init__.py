"""A loaded model as training sees it: who holds it, what family it is of, and the view that it is trained through."""
