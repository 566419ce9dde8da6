"""Files of out-of-fold predictions without a config: their rows, their folds, and what a blend of them claims."""
