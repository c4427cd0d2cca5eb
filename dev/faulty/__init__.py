"""A provider with latency, limits and faults to order."""
