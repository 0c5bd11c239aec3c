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


class Evaluations:
    """Evaluates the policy of a run every `eval_interval` timesteps, and keeps the best one in `best.pt`.

    All ranks evaluate, with the same result, so that none waits for another.

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
        """Evaluate, if it is time to; returns the scalars for TensorBoard. An error ends evaluations, not the run."""
        run, config = self.run, self.run.config
        if not self.interval or run.timestep < min(self.due_at, config.total_timesteps):
            return {}
        self.due_at = (run.timestep // self.interval + 1) * self.interval
        options: dict[str, Any] = {"num_envs": EVALUATION_ENVS[config.script], "env_kwargs": config.env_kwargs}
        options["before_step"] = run.interrupts.set_timer  # as in training, a signal waits as long as steps return
        try:
            seed = config.seed + SEED
            score = evaluate(run.policy, config.env, config.eval_episodes, seed, env_fn=self.env_fn, **options)
        except Exception as error:  # an environment can raise anything
            self.interval = 0
            what = first_line(error)
            if not isinstance(error, (UsageError, EnvironmentFault)):
                what = f"{type(error).__name__}: {what}"
            sys.stderr.write(f"evaluating failed at timestep {run.timestep}, training goes on without: {what}\n")
            return {}
        self.last = score["mean_return"]
        numbers = [round(score[name], 6) for name in ("mean_return", "std_return", "min_return")]
        run.log.files[EVALUATIONS].writer.writerow([run.timestep, *numbers, round(run.wall_time, 3)])
        if self.best is None or self.last > self.best["mean_return"]:
            self.best = policy_state(run.policy) | {"timestep": run.timestep, "mean_return": self.last}
            save_state(run.directory / BEST, self.best)
        run.log.events.write(run.timestep, {"eval/mean_return": self.last})
        if config.target_return is not None and self.last >= config.target_return:
            run.say(f"--target-return {config.target_return:g} is reached at timestep {run.timestep}: {self.last:.1f}")
            run.stop()
        return {"eval/mean_return": self.last}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint saves."""
        return {"due_at": self.due_at, "last": self.last, "best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; `best.pt` is again the best policy up to there."""
        self.due_at, self.last, self.best = state["due_at"], state["last"], state["best"]
        if self.best:
            save_state(self.run.directory / BEST, self.best)
        else:
            (self.run.directory / BEST).unlink(missing_ok=True)
