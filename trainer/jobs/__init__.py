"""Runs jobs. A job is one training, on disk and in memory. Jobs wait in a queue and take turns with prompts."""
