"""Commands for people and scripts: ``./forebay COMMAND``."""
