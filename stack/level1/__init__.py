"""Level 1: image models over the folds, their nets, and the rows without a target that may train them."""
