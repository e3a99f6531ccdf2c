"""The errors a user can cause or meet. Each carries what is wrong, where, and what to do next.

Library code raises these; `app.py` alone turns them into an exit code and a message (or a JSON object).
"""


class MosaicError(Exception):
    """Something failed while running: exit code 1.

    Args:
        message: what is wrong, with the values.
        hint: the next step, ideally a command to run.
        where: file, key or line the error is about.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, where: object = None):
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.where = None if where is None else str(where)


class UsageError(MosaicError):
    """A wrong option, recipe key, value, name or path: exit code 2."""

    exit_code = 2


class DataError(MosaicError):
    """Text, shards or a tokenizer that cannot be used: exit code 1."""


class CheckpointError(MosaicError):
    """A run or checkpoint that is damaged, incomplete or does not fit: exit code 1."""


class NonFiniteError(MosaicError):
    """A loss or gradient that is infinite or not a number: exit code 1."""


class CheckFailed(MosaicError):
    """A check that was asked for did not hold: exit code 3."""

    exit_code = 3


class Interrupted(MosaicError):
    """Stopped by a signal after saving: exit code 128 + signal number (130 or 143)."""

    def __init__(self, message: str, signal_number: int, **details: object):
        super().__init__(message, **details)
        self.exit_code = 128 + signal_number


def first_line(error: BaseException) -> str:
    """What another library's error says, without the pages that may follow."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
