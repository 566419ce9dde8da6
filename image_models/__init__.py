"""Images to out-of-fold logits and embeddings. Knows nothing of folds on disk, the store or GBDTs."""
