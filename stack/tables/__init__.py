"""Tables of rows: csv and parquet files, their ids, groups and columns, read and checked."""
