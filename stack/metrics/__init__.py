"""Scores, intervals, calibration and decision metrics, all for rows that come in groups."""
