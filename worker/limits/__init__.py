"""What holds jobs back: gates of providers, breakers of models. Imports records and below."""
