"""The one error that a person at the shell sees from `dev`."""


class StackError(Exception):
    """Say what went wrong on this machine and what to do about it, without a stack trace."""
