"""Metadata encoding, group features, embeddings and GBDTs; imports nothing of images, the store or torch."""
