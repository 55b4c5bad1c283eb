"""Files that are written whole or not at all, and packages that are imported when they are needed."""
