"""SIGINT and SIGTERM during training."""

import contextlib
import signal
import sys
from typing import Any

from training.errors import StoppedError

GRACE = 0.5
"""Seconds that the run waits for `env.step` after the first signal, before it stops in the middle of an update."""
HAS_TIMER = hasattr(signal, "setitimer")


class Interrupts:
    """Handles SIGINT and SIGTERM: the first one asks the run to stop after the update, a second one stops it at once.

    If the environment does not return from a step within `GRACE` seconds of the first one, a timer stops the run. There
    is no timer while a batch is learned from or a checkpoint is written, however long that takes; an update after every
    step counts as part of the step.

    Attributes:
        status: 0, or 128 + the number of the first signal.
    """

    def __init__(self) -> None:
        self.status = 0
        self.seconds = GRACE
        self.previous: dict[int, Any] = {}
        self.previous_hook = sys.unraisablehook

    def install(self) -> None:
        """Handle signals from now on; does nothing outside of the main thread, where Python does not allow it."""
        with contextlib.suppress(ValueError):
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._handle)
            sys.unraisablehook = self._raise_again

    def uninstall(self) -> None:
        """Restore the previous handlers."""
        self.set_timer(0)
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        if sys.unraisablehook == self._raise_again:  # it may have been replaced since
            sys.unraisablehook = self.previous_hook

    def set_timer(self, seconds: float = GRACE) -> None:
        """Stop the run so many seconds after the first signal, or after now if it has arrived; 0: do not."""
        self.seconds = seconds
        if self.status and HAS_TIMER:  # before a signal, the timer may be the caller's
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def _handle(self, number: int, frame: Any) -> None:
        if self.status:  # a second signal, or the timer
            raise StoppedError("stopped in the middle of an update", self.status)
        self.status = 128 + number
        if HAS_TIMER:
            self.previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._handle)
        self.set_timer(self.seconds)

    def _raise_again(self, ignored: Any) -> None:
        """Python ignores exceptions in finalizers and callbacks of weak references: stop the run soon after."""
        if isinstance(ignored.exc_value, StoppedError):
            self.set_timer(0.1)
        else:
            self.previous_hook(ignored)
