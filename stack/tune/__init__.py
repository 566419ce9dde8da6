"""Optuna studies of the blend, the GBDTs and the image models."""
