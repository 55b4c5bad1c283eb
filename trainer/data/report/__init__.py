"""Reports what a person should look at in a dataset, as text and as pictures."""
