"""Many rows at once: through COPY, each job once."""
