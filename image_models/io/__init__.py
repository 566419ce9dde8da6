"""Readers of image files, one module per format, and the decoder that they share."""
