"""Modules of the user's: environments and potentials of their own."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from environments.errors import UsageError, first_line

OURS = ("benchmarks", "compare", "environments", "evaluate", "networks", "training", "utils")
"""Modules of this project, which are found before those of a person."""


def import_user_module(name: str, flag: str) -> ModuleType:
    """Import a module, also one in the current directory; raises a `UsageError` that names the flag if that fails."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # importing a module can raise anything
        hint = name_clash(error.name or "") if isinstance(error, ImportError) else ""
        raise UsageError(f"{flag}: module {name!r} cannot be imported: {first_line(error)}{hint}") from error


def name_clash(module: str) -> str:
    """What to add to a message where a module of the user's has the name of one of ours; empty if it has not."""
    return f"; {module} is a module of these scripts: rename yours" if module.partition(".")[0] in OURS else ""


def import_function(name: str, flag: str) -> Callable[..., Any]:
    """The function that `module:function` names; raises a `UsageError` that names the flag if there is none."""
    module, colon, function = name.partition(":")
    if not module or not colon:
        raise UsageError(f"{flag} {name} must be module:function")
    found = getattr(import_user_module(module, f"{flag} {name}"), function, None)
    if not callable(found):
        raise UsageError(f"{flag} {name}: {module} has no function {function!r}{name_clash(module)}")
    return found
