"""Pages of the documentation that are generated from the code: commands, config keys and comments of fields."""
