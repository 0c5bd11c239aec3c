"""Errors of usage: one line that says what is wrong and how to correct it."""

import sys
from typing import Any


class UsageError(ValueError):
    """Invalid input. The message is one line that names the flag or file, what is wrong and how to correct it."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))  # a space that is named may fill several lines


class EnvironmentFault(Exception):
    """An environment returned something that its spaces or Gymnasium's API exclude; says what came, and what should."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def close_env(env: Any) -> None:
    """Close an environment, or vector of them; an error in that is only printed, since the work is done."""
    try:
        env.close()
    except Exception as error:  # an environment can raise anything
        sys.stderr.write(f"closing the environment failed: {type(error).__name__}: {first_line(error)}\n")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message that is not empty, or its type if there is none."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return f"sys.exit({error.code!r}) was called"
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
