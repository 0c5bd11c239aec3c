"""State that an environment keeps outside of its attributes, and the names by which classes and functions are found."""

import dis
import logging
import re
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, NamedTuple

FUNCTION = types.FunctionType
LIBRARIES = {"gymnasium", "numpy", "torch", "mujoco", "environments", *sys.stdlib_module_names}
"""Packages whose classes and modules hold no state of an environment."""
INSTALLED = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
PLAIN = (bool, int, float, str, type(None))
STATIC = (logging.Logger, re.Pattern, PurePath, types.ModuleType)


def place(value: Any) -> list[str]:
    """Module and name of a class or function; for a lambda also its line, since several have the same name."""
    line = [str(value.__code__.co_firstlineno)] if isinstance(value, FUNCTION) and "<" in value.__qualname__ else []
    module = getattr(value, "__module__", None) or "numpy"  # whose functions have none
    return [module, value.__qualname__, *line]


def find(where: list[str]) -> Any:
    """The class or function at a place, if its module is imported; else None. Imports nothing."""
    value: Any = sys.modules.get(where[0])
    for name in where[1].split("."):
        value = vars(value).get(name) if isinstance(value, (types.ModuleType, type)) else None
    return value


class Variables(NamedTuple):
    """Variables that belong to a class, a module, or a function, and may change."""

    owner: Any
    values: dict[str, Any]

    def set(self, name: str, value: Any) -> None:
        """Assign one of them."""
        if isinstance(self.owner, dict):
            self.owner[name] = value
        elif name.isdigit():
            self.owner.__closure__[int(name)].cell_contents = value
        else:
            setattr(self.owner, name, value)


def outside(root: Any) -> dict[str, Variables]:
    """The variables outside of its attributes that an object of this class, or this function, may use; by their owner.

    These are the variables of its classes, what its functions enclose and have as defaults, the variables of modules
    that they use, and the same for all functions and classes that they use, but for those of libraries. Not found: what
    is reached by another way, such as an object in a list.
    """
    found: dict[str, Variables] = {}
    home = str(root.__module__).partition(".")[0]
    roots = [root] if isinstance(root, FUNCTION) else root.__mro__
    todo = [base for base in roots if not is_library(base, home)]
    seen = set(map(id, todo))

    def meet(value: Any) -> bool:
        """Visit a function or class later, if that is what this is."""
        if not isinstance(value, (type, FUNCTION)):
            return False
        if id(value) not in seen and not is_library(value, home):
            seen.add(id(value))
            todo.append(value)
        return True

    for owner in todo:
        name = ".".join(place(owner))
        if isinstance(owner, type):
            found[f"class {name}"] = Variables(owner, class_variables(owner))
            for function in functions(owner):
                meet(function)
            continue
        cells = {str(i): cell.cell_contents for i, cell in enumerate(owner.__closure__ or ()) if not is_empty(cell)}
        cells = {index: content for index, content in cells.items() if not meet(content)}
        defaults = {"__defaults__": owner.__defaults__, "__kwdefaults__": owner.__kwdefaults__}
        line = owner.__code__.co_firstlineno  # a decorator gives its function the name of the decorated one
        found[f"function {name}, line {line}"] = Variables(owner, cells | {k: v for k, v in defaults.items() if v})
        names, assigned = used_names(owner.__code__)
        scopes = [owner.__globals__]
        for variables in scopes:
            for used in sorted(names & variables.keys()):
                value = variables[used]
                if isinstance(value, types.ModuleType):
                    if variables is owner.__globals__ and not is_library(value, home):
                        scopes.append(vars(value))
                elif not (meet(value) or is_fixed(value) or (type(value) in PLAIN and used not in assigned)):
                    module = f"module {variables['__name__']}"
                    found.setdefault(module, Variables(variables, {})).values[used] = value
    return {name: variables for name, variables in found.items() if variables.values}


def is_library(value: Any, home: str) -> bool:
    """Whether a class, function or module belongs to a library: to Python's or an installed one other than `home`."""
    name = value.__name__ if isinstance(value, types.ModuleType) else place(value)[0]
    module, package = sys.modules.get(name), name.partition(".")[0]
    if package == home or package in LIBRARIES:
        return package in LIBRARIES
    return str(getattr(module, "__file__", "")).startswith(INSTALLED)


def is_fixed(value: Any) -> bool:
    """Whether an object holds no state, as loggers, paths and functions written in C."""
    return isinstance(value, STATIC) or (callable(value) and not hasattr(value, "__dict__"))


def class_variables(cls: type) -> dict[str, Any]:
    """The variables of a class: neither methods and properties nor what Python adds."""
    return {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith(("__", "_abc_"))
        and not isinstance(value, (type, *STATIC))
        and not hasattr(value, "__get__")
    }


def functions(cls: type) -> Iterator[FUNCTION]:
    """The functions that a class defines, also those of properties, static and class methods."""
    for value in vars(cls).values():
        parts = (value.fget, value.fset) if isinstance(value, property) else (getattr(value, "__func__", value),)
        yield from (part for part in parts if isinstance(part, FUNCTION))


def used_names(code: types.CodeType) -> tuple[set[str], set[str]]:
    """The names of variables and attributes that code uses, and those that it assigns, also in functions within it."""
    names, assigned = set(code.co_names), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("STORE_GLOBAL", "STORE_ATTR"):
            assigned.add(instruction.argval)
        if isinstance(instruction.argval, types.CodeType):
            inner = used_names(instruction.argval)
            names, assigned = names | inner[0], assigned | inner[1]
    return names, assigned


def is_empty(cell: types.CellType) -> bool:
    """Whether the variable of a closure has no value yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False
