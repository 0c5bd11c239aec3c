"""The state of an environment as plain data: read for a checkpoint, and restored.

The future of an environment depends on its attributes: its state, the steps of the episode so far, its random
generators. They are read through all wrappers, vector environments and spaces, with the attributes of their classes,
the variables that their functions enclose, and the module variables that their methods use. Numbers, strings, arrays,
enums, generators, methods, MuJoCo's models and data, and containers of these are saved; renderers stay as the
constructor made them. Two names for one object, or for parts of one array, stay two names for it. Anything else may
belong to the state but cannot be saved: then the state of the environment cannot be read at all.
"""

from typing import Any

from environments.errors import first_line
from environments.reading import Reader, UnreadableError
from environments.restoring import Writer

__all__ = ["UnreadableError", "get_state", "set_state"]


def get_state(value: Any) -> Any:
    """The state of an environment, or of anything in one, as numbers, strings, tensors and containers of them.

    What is none of these becomes [kind, number, content], see `set_state`.

    Raises:
        UnreadableError: it contains an object that cannot be saved, or that raised an exception.
    """
    try:
        return Reader().read(value)
    except UnreadableError:
        raise
    except Exception as error:  # attributes can be properties, which can raise anything
        raise UnreadableError(f"an object; it raised {type(error).__name__}: {first_line(error)}") from error


def set_state(current: Any, saved: Any) -> Any:
    """Restore `current`, an environment or anything in one, to a state that `get_state` returned.

    Returns:
        The restored object. Environments, spaces and MuJoCo's objects are changed in place; everything else is created
        anew.

    Raises:
        UnreadableError: the environment holds another object where the state cannot create one.
        KeyError, TypeError, ValueError, AttributeError: the state belongs to another kind of environment.
    """
    return Writer().write(current, saved)
