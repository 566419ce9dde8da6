"""The spine: every step from csv to submission, the store, the blend, the studies."""
