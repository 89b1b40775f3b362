"""Errors that clever3d raises on purpose: each message says what was wrong, with the value, and what to do."""


class Clever3dError(Exception):
    """Base of every error that clever3d raises on purpose."""


class InputError(Clever3dError, ValueError):
    """Points, images or arguments that cannot be used as they are."""


class DataError(Clever3dError, ValueError):
    """A file or a data set that is missing, truncated or not in the expected format."""


class CheckpointError(Clever3dError, RuntimeError):
    """A checkpoint that is missing, corrupt, or does not fit its architecture."""


class UnknownNameError(Clever3dError, KeyError):
    """A name that is in no registry; the message lists the nearest ones."""

    def __str__(self) -> str:  # KeyError would print the message's repr
        return str(self.args[0]) if self.args else ""


class MissingExtraError(Clever3dError, ImportError):
    """An optional dependency is not installed; the message names the pip extra."""


class InputWarning(UserWarning):
    """Points that can be used but look wrong; the message names the remedy."""
