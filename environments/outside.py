"""State that an environment keeps outside of its attributes, and the names by which classes and functions are found."""

import dis
import random
import sys
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

FUNCTION = types.FunctionType
LIBRARIES = ("builtins", "gymnasium", "typing", "abc", "numpy", "environments")
"""Packages whose classes hold no state."""
CHANGING = (list, dict, deque, np.ndarray, np.random.Generator, np.random.RandomState, random.Random)


def place(value: Any) -> list[str]:
    """Module and name of a class or function; for a lambda also its line, since several have the same name."""
    line = [str(value.__code__.co_firstlineno)] if isinstance(value, FUNCTION) and "<" in value.__qualname__ else []
    return [value.__module__ or "", value.__qualname__, *line]


def find(where: list[str]) -> Any:
    """The class or function at a place, if its module is imported; else None. Imports nothing."""
    value: Any = sys.modules.get(where[0])
    for name in where[1].split("."):
        value = vars(value).get(name) if isinstance(value, (types.ModuleType, type)) else None
    return value


def owners(cls: type) -> dict[str, Any]:
    """The classes of a class that may hold state, and the variables of their modules, by name."""
    classes = [base for base in cls.__mro__ if base.__module__.partition(".")[0] not in LIBRARIES]
    found: dict[str, Any] = {f"class {'.'.join(place(base))}": base for base in classes}
    for function in (function for base in classes for function in functions(base)):
        found[f"module {function.__globals__.get('__name__')}"] = function.__globals__
    return found


def outside(cls: type) -> dict[str, dict[str, Any]]:
    """The state that an environment may have outside of its attributes, by the name of its owner, see `owners`.

    These are the variables of its classes, and those of its modules that its methods use and that can change: lists,
    dicts, arrays, generators, and what a function assigns by `global`. Not found: what is reached in other ways.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, owner in owners(cls).items():
        if isinstance(owner, type):
            found[key] = {
                name: value
                for name, value in vars(owner).items()
                if not name.startswith(("__", "_abc_")) and not callable(value) and not hasattr(value, "__get__")
            }
        else:
            used = [f for base in cls.__mro__ for f in functions(base) if f.__globals__ is owner]
            names = {name for function in used for name in function.__code__.co_names}
            assigned = {i.argval for f in used for i in dis.get_instructions(f) if i.opname == "STORE_GLOBAL"}
            found[key] = {
                name: owner[name]
                for name in sorted(names & owner.keys())
                if name in assigned or isinstance(owner[name], CHANGING)
            }
    return found


def functions(cls: type) -> Iterator[FUNCTION]:
    """The functions that a class defines, also those of properties, static and class methods."""
    for value in vars(cls).values():
        parts = (value.fget, value.fset) if isinstance(value, property) else (getattr(value, "__func__", value),)
        yield from (part for part in parts if isinstance(part, FUNCTION))
