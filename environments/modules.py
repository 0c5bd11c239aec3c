"""Modules of the user's: environments and potentials of their own."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

from environments.errors import UsageError, first_line

OURS = ("compare", "environments", "evaluate", "networks", "training", "utils")


def import_user_module(name: str, flag: str) -> ModuleType:
    """Import a module, also one in the current directory; raises a `UsageError` that names the flag if that fails."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except Exception as error:  # importing a module can raise anything
        hint = ""
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] in OURS:
            hint = f"; {error.name} is also a module of these scripts, which is found first: rename yours"
        raise UsageError(f"{flag}: module {name!r} cannot be imported: {first_line(error)}{hint}") from error
