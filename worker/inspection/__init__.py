"""What people look at: dead letters, audit, overview. Imports limits and below."""
