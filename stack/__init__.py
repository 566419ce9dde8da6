"""The pipeline: every step from csv to submission, the store of runs, the blend and the tuning studies."""
