"""Checkpoints: one file with everything that a run needs to continue, written atomically and verified when loaded.

The file is a zip archive as `torch.save` writes it, with the SHA-256 digest of what precedes as the archive's comment.
"""

import contextlib
import hashlib
import io
import pickle
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from environments import UsageError, first_line
from training.files import BEST, CHECKPOINT, CONFIG, write_atomically

FORMAT = 13
"""Version of what a checkpoint holds; increase it with every change."""
PREVIOUS = "checkpoint_previous.pt"
DIGEST_SIZE = hashlib.sha256().digest_size


def pack(state: Mapping[str, Any]) -> bytes:
    """The content of a checkpoint file."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    # A zip archive ends with the length of its comment, in two bytes, and the comment; torch.save writes none.
    content = buffer.getvalue()[:-2] + DIGEST_SIZE.to_bytes(2, "little")
    return content + hashlib.sha256(content).digest()


def save_checkpoint(directory: Path, state: Mapping[str, Any]) -> None:
    """Write the checkpoint of a run, whole or not at all; the one before it is kept as `checkpoint_previous.pt`.

    Args:
        directory: of the run.
        state: tensors, plain data and containers of them.
    """
    path = directory / CHECKPOINT
    if path.exists():
        write_atomically(directory / PREVIOUS, path.read_bytes())
    save_state(path, state)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a file of a run in the format of its checkpoint, whole or not at all."""
    write_atomically(path, pack({**state, "format": FORMAT, "config": config_checksum(path.parent)}))


def load_checkpoint(directory: Path, name: str = CHECKPOINT) -> dict[str, Any]:
    """The state in the checkpoint of a run, or another file of this format; loading cannot run code (`weights_only`).

    Raises:
        UsageError: there is none, or it is damaged, of a newer version or of other settings.
    """
    path = directory / name
    try:
        content = path.read_bytes()
        config = config_checksum(directory)
    except OSError as error:
        why = (
            "the run may have ended before its first checkpoint"
            if name == CHECKPOINT
            else "it is written by runs with --eval-interval"
        )
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}; {why}") from error
    previous = path.with_name(PREVIOUS)
    usable = name == CHECKPOINT and previous.exists()
    hint = f"; to use {previous.name}, the one before, rename it to {path.name}" if usable else ""
    if name == BEST:
        hint = "; the last policy of the run does not need it: play it without --best"
    if hashlib.sha256(content[:-DIGEST_SIZE]).digest() != content[-DIGEST_SIZE:]:
        raise UsageError(f"{path} is damaged, or not a checkpoint of these scripts{hint}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is not a checkpoint of these scripts: {first_line(error)}") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise UsageError(f"{path} is not a checkpoint of these scripts")
    if state["format"] > FORMAT:
        raise UsageError(f"{path} was written by a newer version of these scripts; update them")
    if state.get("config") != config and name == BEST:
        raise UsageError(f"{path} was written by another run{hint}")
    if state.get("config") != config:
        raise UsageError(f"{directory / CONFIG} was changed after the checkpoint was written; restore it")
    return state


def config_checksum(directory: Path) -> int:
    """The checksum of a run's `config.json`."""
    return zlib.crc32((directory / CONFIG).read_bytes())


@contextlib.contextmanager
def fitting(directory: Path) -> Iterator[None]:
    """Turn errors in applying an undamaged checkpoint to the objects of its settings into a `UsageError`."""
    try:
        yield
    except UsageError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"{directory / CHECKPOINT} does not fit its config.json and this code: {what[:300]}"
        ) from error
