"""The pages of the documentation that are made from the code: commands and config keys."""
