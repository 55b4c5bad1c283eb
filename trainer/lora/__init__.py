"""LoRAs: the kinds of adapter, how they sit in a view, and how they lie in a file."""
