"""A run: its life cycle from its directory to its last checkpoint.

A run directory holds `config.json`, `episodes.csv`, `updates.csv`, `checkpoint.pt`, `reward.png` and TensorBoard
events. Nothing here knows how the policy is trained: that is in the scripts.
"""

import contextlib
import dataclasses
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from environments import UsageError
from environments.states import UnreadableError, get_state, set_state
from training.agreement import check_agreement, local_copy
from training.checkpoint import FORMAT, fitting, load_checkpoint, save_checkpoint
from training.errors import StoppedError, TrainingError
from training.files import CHECKPOINT, LockedDirectory, check_writable, file_name, image_path, run_directory
from training.interrupts import Interrupts
from training.logs import COLUMNS, EpisodeCounter, TrainingLog
from training.policy import Policy, close_env
from training.progress import Progress
from training.provenance import commit, versions
from training.ranks import ALONE, Ranks
from training.report import failure
from training.settings import RunSettings
from utils import plot_returns

PLOT_INTERVAL = 60
"""Seconds between plots of the returns while training."""
RUN_STATE = {"format", "config", "timestep", "wall_time", "next_save", "rng", "cuda_rng", "worlds", "log"}
"""What a checkpoint holds besides the parts of the learner."""
FROM_ENVIRONMENT = ("an observation", "a reward")
Callback = Callable[["Run", dict[str, float]], object]


class Run:
    """A training run: counts timesteps, logs and saves. Used as a context manager.

    Args:
        config: the settings.
        parts: what checkpoints save, by name: objects with a `state_dict`. A resumed run restores them.
        env: the environment, or vector of them, to train in; a resumed run restores it, if its state can be read. It is
            closed at the end of the run.
        callback: called with the run and the scalars that go to TensorBoard, by name, whenever these are logged: about
            every 1,000 timesteps. It may call `stop`. Random numbers from torch's global generator that it draws change
            the run; `evaluate` restores the generator.
        ranks: the processes that train together.

    Attributes:
        directory: of the run.
        home: the directory of rank 0's run; those of the other ranks are temporary.
        timestep: timesteps trained so far.
        policy: the policy that is trained, once the script has set it.
        resumed: the variables given to `save`, if the run is resumed and its environments were restored; else None.
        exit_status: 0, or 128 + the number of the signal that interrupted the run.
    """

    policy: Policy

    def __init__(
        self,
        config: RunSettings,
        parts: Mapping[str, Any],
        env: gym.Env | VectorEnv,
        callback: Callback | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.parts = parts
        self.env = env
        self.callback = callback
        try:
            self._begin(config)
        except BaseException:
            close_env(env)
            raise

    def _begin(self, config: RunSettings) -> None:
        self.home = run_directory(config)
        if self.ranks.world_size > 1:
            check_agreement(config, self.ranks)
            config, self.home, self.folder = local_copy(config, self.home, self.ranks)
        self.config = config
        self.directory = run_directory(config) if self.ranks.rank else self.home
        self.resumed: dict[str, Any] | None = None
        self.timestep = self.exit_status = 0
        self.stopped = False
        self.elapsed_before = 0.0
        self.next_save = config.checkpoint_interval
        self.episodes = EpisodeCounter()
        self.interrupts = Interrupts()
        self.files = LockedDirectory(self.directory)
        self.log = TrainingLog(self.directory)
        if config.resume:
            self.files.reopen()
            self._restore(load_checkpoint(self.directory))
        else:
            check_writable("--img-dir", config.img_dir)
            settings = {**dataclasses.asdict(config), "script": config.script}
            del settings["resume"]
            self.files.create(settings | {"versions": versions(), "commit": commit()}, COLUMNS)

    # --- Progress ----------------------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> bool:
        """Whether there is more to train: timesteps are left, and neither a signal nor `stop` has ended the run."""
        return self.timestep < self.config.total_timesteps and not self.exit_status and not self.stopped

    def stop(self) -> None:
        """End the run after the current update, as if its timesteps were done: it is saved and plotted."""
        self.stopped = True

    @property
    def progress(self) -> float:
        """The fraction of the timesteps that is done, 0 to 1."""
        return min(self.timestep / self.config.total_timesteps, 1.0)

    @property
    def env_seed(self) -> int:
        """Seed of the environments; depends on the timestep, so that a resumed run does not repeat its episodes."""
        return self.config.seed + self.timestep

    @property
    def wall_time(self) -> float:
        """Seconds spent in training, including those before a resume."""
        return self.elapsed_before + time.monotonic() - self.start

    @property
    def recent_returns(self) -> deque[float]:
        """Returns of the last 20 episodes."""
        return self.log.recent_returns

    def count(self, timesteps: int) -> None:
        """Count timesteps, and set `exit_status` if a signal has arrived."""
        self.timestep += timesteps
        if self.ranks.world_size == 1:  # several ranks must stop after the same update, see `log_rewards`
            self.exit_status = self.interrupts.status
        self.interrupts.set_timer()  # restarted, since the environment has responded

    # --- Life cycle --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start = self.plotted = time.monotonic()
        self.first_timestep = self.timestep
        self.log.open(self.timestep)
        name = file_name(self.config.env)
        self.bar = Progress(name, self.timestep, self.config.total_timesteps, self.config.quiet)
        self.interrupts.install()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self.interrupts.set_timer(0)
        if isinstance(error, RuntimeError) and self.ranks.world_size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends all ranks when one has ended
            with contextlib.suppress(RuntimeError):  # torchrun itself may have ended
                missing = self.ranks.missing()
                error = TrainingError(f"rank {missing[0]} has ended, or does not answer") if missing else error
        self.interrupts.uninstall()
        self.bar.close()
        try:
            self.log.close()
            if error is None:
                self.plot(self.directory / "reward.png", self.image_path)
        except OSError as closing:  # a full disk, for example
            error = error or closing
        self.files.release()
        close_env(self.env)
        if isinstance(error, (Exception, StoppedError)):
            saved = (self.directory / CHECKPOINT).exists()
            where = f"rank {self.ranks.rank}, " * (self.ranks.world_size > 1) + f"at timestep {self.timestep}"
            what = failure(error, self.directory, self.config.img_dir, self.ranks.rank)
            message = f"{where}: {what}; "
            message += f"the last checkpoint is {self.home / CHECKPOINT}" if saved else "there is no checkpoint"
            if isinstance(error, StoppedError):
                raise StoppedError(message, error.exit_status) from error
            raise TrainingError(message) from error

    # --- Logging -----------------------------------------------------------------------------------------------------

    def log_rewards(self, rewards: np.ndarray, done: np.ndarray) -> None:
        """Log the episodes that ended in the steps just counted.

        Args:
            rewards: the environments' own rewards, neither shaped nor normalized, (T, N) with N on this rank.
            done: whether the step ended an episode, (T, N).
        """
        if self.ranks.world_size > 1:
            signals = np.full_like(rewards[:1], self.interrupts.status)
            gathered = self.ranks.all_gather_array(np.concatenate((rewards, done, signals)))
            rewards, done, signals = np.split(gathered, [len(rewards), 2 * len(rewards)])
            self.exit_status = int(signals.max())
        steps, num_envs = rewards.shape
        for step, episode_return, length in self.episodes.add(rewards, done):
            self.log_episode(episode_return, length, self.timestep - (steps - 1 - step) * num_envs)

    def log_episode(self, episode_return: float, length: int, timestep: int | None = None) -> None:
        """Log an episode that ended at a timestep, by default the last one counted."""
        timestep = self.timestep if timestep is None else timestep
        self.log.add_episode(timestep, episode_return, length, self.wall_time)

    def log_update(self, metrics: Mapping[str, float]) -> None:
        """Log the metrics of an update, by name, and show progress.

        A row of the log is the mean over the updates of about 1,000 timesteps.

        Raises:
            TrainingError: a metric is not finite.
        """
        self.check_finite({**metrics, "explained_variance": 0.0})  # it is NaN where all returns are equal
        self.log.updates.append(metrics)
        if self.log_due:
            rate = (self.timestep - self.first_timestep) / (time.monotonic() - self.start)
            scalars = self.log.write_row(self.timestep, rate, self.wall_time)
            if self.callback:
                self.callback(self, scalars)
            self.log.start_row(self.timestep)
            self.bar.show(self.timestep, self.recent_returns, rate)

    @property
    def log_due(self) -> bool:
        """Whether it is time for a row of the updates' log: about 1,000 timesteps have passed, or this is the end."""
        return self.timestep >= min(self.log.next_row, self.config.total_timesteps)

    def check_steps(self, what: str, values: np.ndarray) -> None:
        """Raise a `TrainingError` if any value of the steps just counted, (T, N, ...), is NaN or infinite."""
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            self.timestep -= (len(values) - 1 - int(finite.argmin())) * values.shape[1]  # of the value, for the message
            self.check_finite({what: np.nan})

    def check_finite(self, values: Mapping[str, Any]) -> None:
        """Raise a `TrainingError` that names the first of the values, numbers or arrays, that is NaN or infinite."""
        for what, value in values.items():
            if not np.isfinite(value).all():
                hint = "a lower learning rate or reward scale usually helps"
                if what in FROM_ENVIRONMENT:
                    hint = "the environment returned it"
                raise TrainingError(f"{what} is not finite; {hint}")

    @property
    def image_path(self) -> Path:
        """The plot in the directory of images."""
        return image_path(self.config)

    def plot(self, *paths: Path) -> None:
        """Draw the returns of the episodes so far."""
        self.plotted = time.monotonic()
        title = f"A2C, {self.config.script} update: {file_name(self.config.env)}, seed {self.config.seed}"
        timesteps, returns = self.log.episodes()
        for path in paths:
            plot_returns(path, timesteps, returns, title)

    # --- Checkpoints -------------------------------------------------------------------------------------------------

    @property
    def save_due(self) -> bool:
        """Whether it is time for a checkpoint: an interval has passed, or this is the end."""
        return self.timestep >= self.next_save or not self.unfinished

    def save(self, **loop: Any) -> None:
        """Write the checkpoint, whole or not at all.

        Args:
            loop: the variables of the training loop, tensors and plain data; a resumed run has them in `resumed`.
        """
        self.interrupts.set_timer(0)
        self.next_save = self.timestep + self.config.checkpoint_interval
        try:
            world = get_state({"env": self.env, "episodes": vars(self.episodes), "loop": loop})
        except (UnreadableError, RecursionError):  # the latter for an object that contains itself
            world = None
        device = torch.device(self.config.device)
        state = {name: part.state_dict() for name, part in self.parts.items()} | {
            "timestep": self.timestep,
            "wall_time": self.wall_time,
            "next_save": self.next_save,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "worlds": self.ranks.all_gather_object(world),
            "log": self.log.mark(),
        }
        save_checkpoint(self.directory, state)
        if time.monotonic() > self.plotted + PLOT_INTERVAL:
            self.plot(self.directory / "reward.png")

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Continue where a checkpoint was written."""
        if state["format"] < FORMAT:
            raise UsageError(
                f"--resume {self.directory}: the checkpoint was written by an older version of these scripts; it can be"
                " evaluated, but not resumed: use the commit in its config.json, or start a new run"
            )
        if unmatched := (state.keys() - RUN_STATE) ^ self.parts.keys():
            names = ", ".join(sorted(unmatched))
            raise UsageError(
                f"--resume {self.directory}: only one of the checkpoint and this script has {names};"
                " use the commit in its config.json, or start a new run"
            )
        with fitting(self.directory):
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["rng"])
            if state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"], self.config.device)
            self.timestep, self.elapsed_before = int(state["timestep"]), float(state["wall_time"])
            self.next_save = int(state["next_save"])
            worlds = state["worlds"]
            if not worlds:
                raise ValueError("it has no environments")
            if len(worlds) == self.ranks.world_size and None not in worlds:
                world = set_state({"env": self.env}, worlds[self.ranks.rank])
                vars(self.episodes).update(world["episodes"])
                loop = world["loop"].items()
                self.resumed = {k: v.to(self.config.device) if isinstance(v, Tensor) else v for k, v in loop}
            self.log.restore(state["log"])
        self.log.truncate()
        why = (
            "their state cannot be read" if len(worlds) == self.ranks.world_size else f"there were {len(worlds)} ranks"
        )
        what = "where they were" if self.resumed else f"in new episodes, since {why}"
        if not self.config.quiet:
            print(f"resumed at timestep {self.timestep}, the environments {what}")
