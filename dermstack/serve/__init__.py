"""Uses of a finished ensemble: bundle, predictions for new images, external validation and the local web page."""
