"""Metadata, patient-level features and GBDTs. Knows nothing of images, the store or torch."""
