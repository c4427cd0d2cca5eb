"""A job's life in Redis: its record, its message, and the scripts that change them. Imports policy and errors."""
