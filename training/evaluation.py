"""Periodic evaluation while training: its log, the best policy so far, and the return at which training ends."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from environments import EnvFn, EnvironmentFault, UsageError, first_line
from training.checkpoint import save_state
from training.files import BEST, EVALUATIONS
from training.policy import EVALUATION_ENVS, evaluate, policy_state

if TYPE_CHECKING:
    from training.run import Run

SEED = 2_000_000
"""Added to the seed of the run: neither training nor the score at its end uses these seeds."""


class SignalError(Exception):
    """A signal arrived during an evaluation."""


class Evaluations:
    """Evaluates the policy of a run every `eval_interval` timesteps, and keeps the best one in `best.pt`.

    All ranks evaluate, so that none waits for another; what rank 0 found counts.

    Args:
        run: not resumed yet.
        env_fn: makes the environment, if it is not registered.

    Attributes:
        due_at: timestep of the next evaluation.
        last: mean return of the last one; None before the first.
        best: the best policy as `best.pt` has it; None before the first evaluation.
    """

    def __init__(self, run: Run, env_fn: EnvFn | None) -> None:
        self.run, self.env_fn = run, env_fn
        self.interval = run.config.eval_interval
        self.due_at = self.interval
        self.last: float | None = None
        self.best: dict[str, Any] | None = None

    def evaluate_if_due(self) -> dict[str, float]:
        """Evaluate, if it is time to; returns the scalars for TensorBoard.

        An error ends evaluations, not the run. A signal ends this one, which is due again when the run is resumed.
        """
        run, config = self.run, self.run.config
        if not self.interval or run.timestep < min(self.due_at, config.total_timesteps):
            return {}
        score = run.ranks.all_gather_object(self._score())[0]
        if not score:
            return {}
        self.due_at = (run.timestep // self.interval + 1) * self.interval
        if "error" in score:
            self.interval = 0
            if not run.ranks.rank:
                what = f"evaluating failed at timestep {run.timestep}, training goes on without: {score['error']}"
                sys.stderr.write(f"{what}\n")
            return {}
        self.last = score["mean_return"]
        numbers = [round(score[name], 6) for name in ("mean_return", "std_return", "min_return")]
        run.log.files[EVALUATIONS].writer.writerow([run.timestep, *numbers, round(run.wall_time, 3)])
        if self.best is None or self.last > self.best["mean_return"]:
            self.best = policy_state(run.policy) | {"timestep": run.timestep, "mean_return": self.last}
            save_state(run.directory / BEST, self.best)
        run.log.events.write(run.timestep, {"eval/mean_return": self.last})
        self._stop_at_target()
        return {"eval/mean_return": self.last}

    def _score(self) -> dict[str, Any]:
        """What `evaluate` returns, or the error; nothing, if a signal has arrived."""
        config = self.run.config
        options: dict[str, Any] = {"env_fn": self.env_fn, "before_step": self._check_signals}
        options |= {"num_envs": EVALUATION_ENVS[config.script], "env_kwargs": config.env_kwargs}
        self.run.interrupts.set_timer()
        try:
            return evaluate(self.run.policy, config.env, config.eval_episodes, config.seed + SEED, **options)
        except SignalError:
            return {}
        except Exception as error:  # an environment can raise anything
            known = isinstance(error, (UsageError, EnvironmentFault))
            return {"error": first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"}

    def _check_signals(self) -> None:
        if self.run.interrupts.status:
            raise SignalError

    def _stop_at_target(self) -> None:
        """End the run if its last evaluation has reached its target."""
        target = self.run.config.target_return
        if target is not None and self.last is not None and self.last >= target:
            self.run.say(f"--target-return {target:g} is reached at timestep {self.run.timestep}: {self.last:.1f}")
            self.run.stop()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint saves."""
        return {"due_at": self.due_at, "last": self.last, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; `best.pt` is again the best policy up to there."""
        self.due_at, last, self.best = int(state["due_at"]), state["last"], state["best"]
        self.last = None if last is None else float(last)
        if self.best is not None:
            float(self.best["mean_return"])  # raises if it is none
            save_state(self.run.directory / BEST, self.best)
        else:
            (self.run.directory / BEST).unlink(missing_ok=True)
        self._stop_at_target()
