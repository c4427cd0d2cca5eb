"""Errors of the cache. None of them reaches a caller who only wants a value: it is computed then."""


class CacheError(Exception):
    """Anything that the cache raises on purpose."""


class Away(CacheError):
    """Redis did not answer in time, refused, or is left alone for a while because it did so before."""


class Full(Away):
    """Redis has no memory left for what was to be written; reading goes on."""


class Unhashable(CacheError):
    """What a key was to be made of has no canonical form."""


class GivenUp(CacheError):
    """The caller's ``over`` was set while it waited for the answer to an equal question."""
