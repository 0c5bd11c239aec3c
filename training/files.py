"""Files of a run: names, atomic writing, checks before anything is written, the directory and its lock."""

import contextlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from environments import UsageError
from training.settings import RunSettings

CONFIG, CHECKPOINT, EPISODES, UPDATES = "config.json", "checkpoint.pt", "episodes.csv", "updates.csv"
BEST, EVALUATIONS = "best.pt", "evaluations.csv"
CONTENTS = (CONFIG, CHECKPOINT, EPISODES, UPDATES)
"""The files by which a directory is recognized as that of a run."""


def file_name(env_id: str) -> str:
    """An environment's id, without its module, as a part of a file name."""
    return env_id.rpartition(":")[2].replace("/", "-")


def run_directory(config: RunSettings) -> Path:
    """Where a run is kept: as its settings say, or in a new directory below `runs`."""
    stamp = time.strftime("%Y%m%d-%H%M%S") + f"-{time.time_ns() // 1000 % 1_000_000:06d}-{os.getpid()}"
    default = Path("runs") / f"{file_name(config.env)}_{config.script}_seed{config.seed}_{stamp}"
    return config.resume or config.run_dir or default


def image_path(config: RunSettings) -> Path:
    """The plot in `img_dir`, which the next run of this environment overwrites."""
    suffix = "_epoch" if config.script == "epoch" else ""
    return config.img_dir / f"A2C_{file_name(config.env)}{suffix}.png"


def check_writable(flag: str, directory: Path) -> None:
    """Raise a `UsageError` if a directory can neither be created nor written to; creates nothing."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"{flag} {directory} cannot be created: {existing} is not a directory; choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {directory} cannot be written: no permission in {existing}; choose another")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file atomically: even after a crash it has either the old content or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    with contextlib.suppress(OSError):  # where a directory cannot be opened, as on Windows
        directory = os.open(path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)


def load_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a run; raises a `UsageError` if there is none or it cannot be read."""
    try:
        config = json.loads((directory / CONFIG).read_text())
        if isinstance(config, dict) and {"script", "env", "hidden_sizes"} <= config.keys():
            return config
        raise ValueError("settings are missing")
    except OSError as error:
        raise UsageError(
            f"{directory} is not the directory of a run: config.json cannot be read ({error.strerror})"
        ) from error
    except ValueError as error:
        raise UsageError(f"{directory / CONFIG} is damaged: {error}") from error


class LockedDirectory:
    """The directory of a run, locked against other processes from `create` or `reopen` until `release`.

    Args:
        path: of the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = FileLock(path / "lock", timeout=0)

    def create(self, config: Mapping[str, Any], tables: Mapping[str, list[str]]) -> None:
        """Create the directory with its `config.json` and empty CSV files with these columns.

        Raises:
            UsageError: it already holds a run, or cannot be written.
        """
        self._check_new()
        check_writable("--run-dir", self.path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock("--run-dir")
            self._check_new()  # again: another process may have created a run in it meanwhile
            write_atomically(self.path / CONFIG, (json.dumps(config, indent=2, default=str) + "\n").encode())
            self.restart(tables)
        except OSError as error:
            raise UsageError(f"--run-dir {self.path} cannot be written: {error.strerror}") from error

    def reopen(self) -> None:
        """Lock the directory of a run that is resumed; raises a `UsageError` if it cannot be written or is in use."""
        check_writable("--resume", self.path)
        self._lock("--resume")

    def restart(self, tables: Mapping[str, list[str]]) -> None:
        """Empty the CSV files of a run that ended before its first checkpoint."""
        for name, columns in tables.items():
            (self.path / name).write_text(",".join(columns) + "\n")

    def release(self) -> None:
        """Let other processes use the directory."""
        self.lock.release()

    def _check_new(self) -> None:
        if any((self.path / name).exists() for name in CONTENTS):
            raise UsageError(
                f"--run-dir {self.path} already holds a run; --resume {self.path} continues it,"
                " or choose another directory"
            )

    def _lock(self, flag: str) -> None:
        try:
            self.lock.acquire()
        except Timeout:
            raise UsageError(f"{flag} {self.path} is in use by another process; stop that one first") from None
