"""Predictions of other pipelines: their files are found, read, checked and stored as runs."""
