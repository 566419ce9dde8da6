"""Predictions of runs beside each other: joined by id, ranked, moved to one scale, checked for what is implausible."""
