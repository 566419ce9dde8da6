"""Scores, intervals, calibration and decision metrics for rows in groups."""
