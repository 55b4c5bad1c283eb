"""Images and captions: finding them, checking them, cutting them to size, and the order in which they are trained
on."""
