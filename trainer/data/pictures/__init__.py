"""Pictures as pixels: read, cut to size, changed, masked."""
