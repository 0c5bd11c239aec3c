"""What a run says at its end."""

import contextlib
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from environments import EnvironmentFault, first_line
from training.errors import DISK_ERRORS, StoppedError, TrainingError


def failure(error: BaseException, directory: Path, img_dir: Path, rank: int) -> str:
    """Describe, in one line, why a run failed; the traceback of an unexpected error is written to a file.

    Args:
        error: what ended the run.
        directory: of the run; the traceback goes into its `error.txt`.
        img_dir: the directory of images.
        rank: of this process; of another one than 0 the traceback goes into a temporary file.
    """
    what = first_line(error)
    if isinstance(error, OSError):
        own = str(error.filename).startswith((str(directory), str(img_dir)))
        if error.errno in DISK_ERRORS or own:
            return f"{error.filename or directory} cannot be written: {error.strerror}"
    if isinstance(error, (TrainingError, StoppedError, EnvironmentFault)):
        return what
    what = f"{type(error).__name__}: {what}"
    with contextlib.suppress(OSError):  # the directory may be gone, or the disk full
        path = directory / "error.txt"
        if rank:
            path = Path(tempfile.mkstemp(".txt", f"error_rank{rank}_")[1])
        path.write_text("".join(traceback.format_exception(error)))
        what += f" (traceback in {path})"
    return what


def still_rising(timesteps: Sequence[int], returns: Sequence[float], total_timesteps: int) -> bool:
    """Whether the return rose in the last fifth of a run by more than a tenth of all that it rose, and than chance.

    Args:
        timesteps, returns: of all episodes.
        total_timesteps: of the run.
    """
    done, values = np.array(timesteps) / total_timesteps, np.array(returns)
    first, before, last = (values[(a < done) & (done <= b)] for a, b in ((0.0, 0.2), (0.6, 0.8), (0.8, np.inf)))
    if min(map(len, (first, before, last))) < 5:
        return False
    gain, error = last.mean() - before.mean(), np.sqrt(before.var() / len(before) + last.var() / len(last))
    return bool(gain > max(0.1 * (last.mean() - first.mean()), 2 * error))
