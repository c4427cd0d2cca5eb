"""Asking a model: one call, its errors, its limits, its cache. Knows no database and no producer."""
