"""Settings of an experiment: the YAML config, read into one validated, frozen object."""
