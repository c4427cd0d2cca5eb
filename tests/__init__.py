"""Tests on real servers, real workers and real signals."""
