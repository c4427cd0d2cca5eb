"""Documents and their vectors: kept, found, indexed, embedded anew."""
