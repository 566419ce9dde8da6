"""Tests promises of coverage by simulations with known truth; `python -m benchmarks.promises` writes the page."""
