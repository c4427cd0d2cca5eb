"""Results of queries, kept until a commit changes a table that they were read from."""
