"""Audit of an experiment: leaks, acquisition shortcuts, drift and doubtful labels, each finding with its evidence."""
