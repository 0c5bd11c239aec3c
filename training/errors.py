"""Errors that end a run."""

import errno

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of a full or failing disk."""


class TrainingError(Exception):
    """Training cannot continue, for example because of a NaN. Gives the cause, the timestep and the checkpoint."""


class StoppedError(KeyboardInterrupt):
    """Signals stopped the run in the middle of an update. `exit_status` is 128 + the number of the first signal."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status
