"""Jobs: one training each, on disk and in memory, in a queue, taking turns with prompts."""
