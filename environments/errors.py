"""Errors of usage: one line that says what is wrong and how to correct it."""


class UsageError(ValueError):
    """Invalid input. The message is one line that names the flag or file, what is wrong and how to correct it."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type if it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)
