"""Keeps what jobs produce in PostgreSQL: models, engine and pool, bulk operations, queries, migrations."""
