"""What a user's data can get wrong."""

from __future__ import annotations


class DataError(ValueError):
    """A data set cannot be used as it is; the one-line message names the file, the ids and the way out."""


class ImageError(DataError):
    """One image cannot be read, or is not what the annotations say; the message names its file."""


class LoadingError(RuntimeError):
    """Data cannot be loaded any more; the message says what broke, how, and the likely cure."""
