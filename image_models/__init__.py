"""Turns images into logits and embeddings; independent of folds on disk, the store and GBDTs."""
