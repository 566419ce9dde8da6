"""Pages to read: the report, the first look at the data, their figures."""
