"""A run: its life cycle from its directory to its last checkpoint.

A run directory holds `config.json`, `episodes.csv`, `updates.csv`, `checkpoint.pt`, `reward.png` and TensorBoard
events. Nothing here knows how the policy is trained: that is in the scripts.
"""

import contextlib
import dataclasses
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Self, SupportsFloat

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv

from environments import EnvFn, advice, close_env
from training.agreement import check_agreement, local_copy
from training.checkpoint import PREVIOUS, load_checkpoint, save_checkpoint
from training.errors import StoppedError, TrainingError
from training.evaluation import Evaluations
from training.files import CHECKPOINT, LockedDirectory, check_writable, file_name, image_path, run_directory
from training.interrupts import Interrupts
from training.logs import COLUMNS, EpisodeCounter, TrainingLog
from training.policy import Policy
from training.progress import Progress
from training.provenance import commit, versions
from training.ranks import ALONE, Ranks
from training.report import failure
from training.settings import RunSettings
from training.snapshot import restore, run_state
from utils import plot_returns

PLOT_INTERVAL = SAVE_INTERVAL = 60
"""Seconds between plots of the returns, and between checkpoints, while training."""
FROM_ENVIRONMENT = {
    "an observation": "the environment returned it; replace such values there, by np.nan_to_num or a limit",
    "a reward": "the environment returned it; correct it there",
}
Callback = Callable[["Run", dict[str, float]], object]


class Run:
    """A training run: counts timesteps, logs and saves. Used as a context manager.

    Args:
        config: the settings.
        parts: what checkpoints save, by name: objects with a `state_dict`. A resumed run restores them.
        env: the environment, or vector of them, to train in; a resumed run restores it, if its state can be read. It is
            closed at the end of the run.
        env_fn: makes environments for evaluations, if theirs is not registered.
        callback: called with the run and the scalars that go to TensorBoard, by name, whenever these are logged: about
            every 1,000 timesteps. It may call `stop`. If it raises an exception, the run is saved and ends, and the
            exception reaches the caller of `train`.
        ranks: the processes that train together.

    Attributes:
        directory: of the run.
        home: the directory of rank 0's run; those of the other ranks are temporary.
        image_path: the plot in the directory of images.
        timestep: timesteps trained so far.
        generator: for the noise of the policy; nobody else draws from it.
        resumed: the variables given to `save`, if the run is resumed and its environments were restored; else None.
        exit_status: 0, or 128 + the number of the signal that interrupted the run.
    """

    def __init__(
        self,
        config: RunSettings,
        parts: Mapping[str, Any],
        env: gym.Env | VectorEnv,
        env_fn: EnvFn | None = None,
        callback: Callback | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        self.parts = parts
        self.env = env
        self.callback = callback
        self.env_fn = env_fn
        try:
            self._begin(config)
        except BaseException:
            close_env(env)
            if hasattr(self, "files"):
                self.files.release()
            raise

    def _begin(self, config: RunSettings) -> None:
        self.home = run_directory(config)
        if self.ranks.world_size > 1:
            check_agreement(config, self.ranks)
            config, self.home, self.folder = local_copy(config, self.home, self.ranks)
        self.config, self.image_path = config, image_path(config)
        self.directory = run_directory(config) if self.ranks.rank else self.home
        self.resumed: dict[str, Any] | None = None
        self.timestep = self.exit_status = 0
        self.stopped = False
        self.elapsed_before = 0.0
        self.timed_from: tuple[int, float] | None = None
        self.next_save = config.checkpoint_interval
        self.minute_passed = False
        self.callback_error: Exception | None = None
        # Not the seed itself, which the global generator has, from which the networks are initialized. Only the lower
        # 32 bits of a seed count.
        self.generator = torch.Generator(config.device).manual_seed(2**32 - 1 - config.seed)
        self.episodes = EpisodeCounter()
        self.interrupts = Interrupts()
        self.files = LockedDirectory(self.directory)
        self.log = TrainingLog(self.directory)
        self.evaluations = Evaluations(self, self.env_fn)
        if config.resume:
            self.files.reopen()
            if any((self.directory / name).exists() for name in (CHECKPOINT, PREVIOUS)):
                restore(self, load_checkpoint(self.directory))
            else:
                self.files.restart(COLUMNS)
                self.say("there is no checkpoint yet: the run starts again, from timestep 0")
        else:
            check_writable("--img-dir", config.img_dir)
            settings = {**dataclasses.asdict(config), "script": config.script}
            del settings["resume"]
            self.files.create(settings | {"versions": versions(), "commit": commit()}, COLUMNS)

    @property
    def policy(self) -> Policy:
        """The policy that is trained, once the script has set it."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        policy.env_kwargs = self.config.env_kwargs
        self._policy = policy

    def say(self, line: str) -> None:
        """Print a line, unless the run is quiet."""
        if not self.config.quiet:
            print(line, flush=True)

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

    def count(self, timesteps: int, reward: SupportsFloat | None = None) -> None:
        """Count timesteps, and set `exit_status` if a signal has arrived.

        Args:
            timesteps: of all environments.
            reward: the environment's own, of one timestep; those of many environments are given to `log_rewards`.
        """
        self.timestep += timesteps
        if reward is not None:
            self.log.rewards += float(reward)
            self.log.steps += timesteps
        if self.ranks.world_size == 1:  # several ranks must stop after the same update, see `log_rewards`
            self.exit_status = self.interrupts.status
        self.interrupts.set_timer()  # restarted, since the environment has responded

    # --- Life cycle --------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        for line in [] if self.config.quiet else advice(self.env):
            print(line, file=sys.stderr)
        self.start = self.plotted = self.saved_at = time.monotonic()
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
                self.plot()
                self.image_path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.directory / "reward.png", self.image_path)
        except OSError as closing:  # a full disk, for example
            error = error or closing
        self.files.release()
        close_env(self.env)
        if isinstance(error, (Exception, StoppedError, SystemExit)):  # a library of the environment may call sys.exit
            saved = (self.directory / CHECKPOINT).exists()
            where = f"rank {self.ranks.rank}, " * (self.ranks.world_size > 1) + f"at timestep {self.timestep}"
            what = failure(error, self.directory, self.config.img_dir, self.ranks.rank)
            message = f"{where}: {what}; "
            message += f"the last checkpoint is {self.home / CHECKPOINT}" if saved else "there is no checkpoint"
            if isinstance(error, StoppedError):
                raise StoppedError(message, error.exit_status) from error
            raise TrainingError(message) from error
        if self.callback_error:
            raise self.callback_error

    # --- Logging -----------------------------------------------------------------------------------------------------

    def log_rewards(self, rewards: np.ndarray, done: np.ndarray) -> None:
        """Log the episodes that ended in the steps just counted.

        Args:
            rewards: the environments' own rewards, neither shaped nor normalized, (T, N) with N on this rank.
            done: whether the step ended an episode, (T, N).
        """
        if self.ranks.world_size > 1:
            passed = float(time.monotonic() > self.saved_at + SAVE_INTERVAL)
            signals = np.array([[self.interrupts.status], [passed]]) + np.zeros_like(rewards[:1])
            gathered = self.ranks.all_gather_array(np.concatenate((rewards, done, signals)))
            rewards, done, signals = np.split(gathered, [len(rewards), 2 * len(rewards)])
            self.exit_status, self.minute_passed = int(signals[0].max()), bool(signals[1].any())
        self.interrupts.set_timer(0)  # the update follows
        self.log.rewards += float(rewards.sum())
        self.log.steps += rewards.size
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
            first, since = self.timed_from or (self.first_timestep, self.start)
            rate = (self.timestep - first) / (time.monotonic() - since)
            scalars = self.log.write_row(self.timestep, rate, self.wall_time) | self.evaluations.evaluate_if_due()
            if self.callback:
                try:
                    self.callback(self, scalars)
                except Exception as error:
                    if self.ranks.world_size > 1:  # the others would wait for this one
                        raise
                    self.callback_error = error
                    self.stop()
            self.log.start_row(self.timestep)
            self.bar.show(self.timestep, self.recent_returns, self.log.mean_reward, rate, self.evaluations.last)
        self.timed_from = self.timed_from or (self.timestep, time.monotonic())  # the first update includes compiling
        self.interrupts.set_timer()

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
                hint = FROM_ENVIRONMENT.get(what, "a lower learning rate or reward scale usually helps")
                raise TrainingError(f"{what} is not finite; {hint}")

    def plot(self) -> None:
        """Draw the returns of the episodes so far, in the directory of the run."""
        self.plotted = time.monotonic()
        title = f"A2C, {self.config.script} update: {file_name(self.config.env)}, seed {self.config.seed}"
        timesteps, returns = self.log.episodes()
        plot_returns(self.directory / "reward.png", timesteps, returns, title)

    # --- Checkpoints -------------------------------------------------------------------------------------------------

    @property
    def save_due(self) -> bool:
        """Whether it is time for a checkpoint: an interval or a minute has passed, or this is the end."""
        minute = time.monotonic() > self.saved_at + SAVE_INTERVAL
        if self.ranks.world_size > 1:  # all ranks must save after the same update, see `log_rewards`
            minute = self.minute_passed
        return minute or self.timestep >= self.next_save or not self.unfinished

    def save(self, **loop: Any) -> None:
        """Write the checkpoint, whole or not at all.

        Args:
            loop: the variables of the training loop, tensors, arrays and plain data; a resumed run has them in
                `resumed`.
        """
        self.interrupts.set_timer(0)
        self.saved_at = time.monotonic()
        if self.timestep >= self.next_save:
            self.next_save = self.timestep + self.config.checkpoint_interval
        save_checkpoint(self.directory, run_state(self, loop))
        if time.monotonic() > self.plotted + PLOT_INTERVAL:
            self.plot()
        self.interrupts.set_timer()
