"""Files of rows, read piece by piece."""
