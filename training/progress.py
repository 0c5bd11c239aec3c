"""What a person sees of a run while it trains."""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm


class Progress:
    """A progress bar on standard error or, if that is not a terminal, about ten lines on standard output.

    Args:
        name: of the environment.
        timestep: where the run begins.
        total_timesteps: where it ends.
        quiet: show nothing.
    """

    def __init__(self, name: str, timestep: int, total_timesteps: int, quiet: bool) -> None:
        self.total = total_timesteps
        self.quiet = quiet
        self.next_line = 0
        self.bar = tqdm(
            total=total_timesteps,
            initial=timestep,
            desc=name,
            unit=" timesteps",
            unit_scale=True,
            disable=True if quiet else None,  # None: no bar if standard error is not a terminal
        )

    def show(
        self, timestep: int, recent_returns: Sequence[float], mean_reward: float, rate: float, score: float | None
    ) -> None:
        """Show the timesteps trained, the mean of recent returns and, in a line, the speed and the time left.

        The score is the mean return of the last evaluation, if there was one.

        Where no episode has ended, the mean reward per step takes the place of the return.
        """
        mean = f"return {np.mean(recent_returns):.1f}" if recent_returns else f"reward per step {mean_reward:.3g}"
        mean += "" if score is None else f", evaluation {score:.1f}"
        self.bar.set_postfix_str(mean, refresh=False)
        self.bar.update(timestep - self.bar.n)
        if self.bar.disable and not self.quiet and timestep >= self.next_line:
            left = max((self.total - timestep) / rate, 0)
            print(
                f"timestep {timestep}/{self.total}  mean {mean}  {rate:,.0f} timesteps/s  {left:.0f} s left",
                flush=True,
            )
            self.next_line = timestep + self.total // 10

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
