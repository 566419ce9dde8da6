"""The finished ensemble away from home: bundle, predictions for new images, external validation, the local app."""
