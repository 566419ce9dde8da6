"""Level 2: the matrix of features, the stackers that are fitted on it, and what explains them."""
