"""Drafts a config from a folder or tables: which file and which column is what, and where the images are."""
