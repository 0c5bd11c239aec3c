"""What a result depends on besides its settings: versions of the libraries and of this code."""

import importlib.metadata
import platform
import subprocess
import zlib
from pathlib import Path

PROJECT = Path(__file__).parent.parent
PACKAGES = ("environments", "training")
LIBRARIES = ("torch", "gymnasium", "numpy", "mujoco")


def versions() -> dict[str, str | None]:
    """Versions of Python and of the libraries; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def sources() -> int:
    """A checksum of this project's code."""
    paths = [*PROJECT.glob("*.py"), *(path for name in PACKAGES for path in (PROJECT / name).glob("*.py"))]
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(paths)))


def commit() -> str | None:
    """The commit of this project, with a + if files other than results have changed since; None outside of git."""
    git = ["git", "-C", str(PROJECT)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno", "--", ".", ":!results", ":!img", ":!docs"],
            capture_output=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)
