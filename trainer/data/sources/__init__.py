"""Where images and captions come from: one file for each kind of source."""
