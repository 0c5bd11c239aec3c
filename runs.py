"""A run: its command line, its directory on disk, its progress, and the trained policy that comes out of it.

A run directory holds `config.json`, `episodes.csv`, `updates.csv`, `checkpoint.pt`, `reward.png` and TensorBoard
events. Nothing here knows how the policy is trained: that is the scripts' part.
"""

import contextlib
import csv
import ctypes
import dataclasses
import errno
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import pickle
import platform
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar

import gymnasium as gym
import numpy as np
import torch
import tyro
from filelock import FileLock, Timeout
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor, nn
from tqdm import tqdm

import env_states
import environments
from distributed import ALONE, RankError, Ranks
from environments import ActionMap, EnvFn
from networks import CategoricalActor, Critic, GaussianActor, Hidden
from utils import ObservationNormalizer, UsageError, plot_returns

EPISODE_COLUMNS = ["timestep", "return", "length", "wall_time"]
METRICS = ["policy_loss", "value_loss", "entropy", "explained_variance", "actor_grad_norm", "critic_grad_norm"]
LOG_INTERVAL = 1000
"""Timesteps between rows of updates.csv, or more where one update takes more."""
LOGS = {"episodes.csv": EPISODE_COLUMNS, "updates.csv": ["timestep", *METRICS, "timesteps_per_second", "wall_time"]}

PRESETS = Path(__file__).with_name("presets.toml")
PLOT_INTERVAL = 60
"""Seconds between drawings of the returns while training."""
PATIENCE = 0.5
"""Seconds that an interrupted run waits for a step of its environment, before it leaves its update undone."""
ALARMS = hasattr(signal, "setitimer")
CHECKPOINT_FORMAT = 3
PROGRESS = ["updates", "new_episodes", "recent_returns", "next_log", "next_save"]
"""What a run keeps of itself between rows of its logs."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
Callback = Callable[["Run", dict[str, float]], object]


class TrainingError(Exception):
    """Training cannot go on: a number that is not finite, an environment that raised. Says what, when and where."""


class StoppedError(KeyboardInterrupt):
    """Signals stopped the run before its update was through. `exit_status` is 128 + the number of the first."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


# --- The command line ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run is told, whichever way it learns. The scripts' own `Config` adds the algorithm's settings."""

    script: ClassVar[str]

    env: str = "Pendulum-v0"
    """Environment: a Gymnasium id, or module:Id-v0 to import the module that registers it."""
    preset: bool = True
    """Start from what presets.toml has for the environment, if anything, instead of the defaults shown here."""
    seed: int = 0
    """Seed of everything random: the same seed gives the same numbers."""
    total_timesteps: int = 100_000
    """Timesteps to train, summed over the environments."""
    run_dir: Path | None = None
    """Directory of the run, new or empty. Without it: runs/<env>_<epoch|step>_seed<seed>_<time>."""
    resume: Path | None = None
    """Continue the run in this directory with its own settings; only --total-timesteps can be changed."""
    img_dir: Path = Path("img")
    """Where the plot A2C_<env>.png (step update) or A2C_<env>_epoch.png (epoch update) goes."""
    quiet: bool = False
    """Print nothing but errors."""
    checkpoint_interval: int = 20_000
    """Timesteps between checkpoints; there is always one at the end."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units in each hidden layer, of the actor and of the critic."""
    activation: Literal["silu", "leaky_relu"] = "silu"
    """Activation of the hidden layers."""
    layer_norm: bool = True
    """Normalise each hidden layer over its units."""
    init: Literal["orthogonal", "sparse"] = "orthogonal"
    """What the networks' weights start as."""
    mean_limit: float = 2.0
    """How far the mean of a continuous action may leave its range (tanh keeps it there): 1 is the range's edge, 0 is
    for no limit."""
    state_std: bool = False
    """Let the deviation of a continuous action depend on the state, instead of learning one for all states."""
    device: str = "cpu"
    """Where the networks live: cpu, cuda or cuda:<n>. For networks this small the CPU is the faster one."""
    reward_shaping: str | None = None
    """Potential that shapes the reward: built-in (MountainCar) or module:function, from observations (N, D) to (N,)."""

    @classmethod
    def for_env(cls, env: str, **settings: Any) -> Self:
        """The defaults, but for what `presets.toml` has for an environment, but for what is said here."""
        return cls(env=env, **{**preset(cls.script, env), **settings})

    @property
    def hidden(self) -> Hidden:
        """The hidden layers of the networks."""
        return Hidden(self.hidden_sizes, self.activation, self.layer_norm, self.init)

    def validate(self) -> None:
        """Raise a `UsageError` for the first setting that cannot be."""
        for name in ("total_timesteps", "checkpoint_interval"):
            check(self, name, getattr(self, name) > 0, "must be at least 1")
        check(self, "hidden_sizes", all(size > 0 for size in self.hidden_sizes), "must all be at least 1")
        check(self, "mean_limit", 0 <= self.mean_limit < math.inf, "must be finite, and 0 or more")
        check(self, "seed", 0 <= self.seed < 2**32, "must be between 0 and 4294967295")
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"--device {self.device} is not there ({environments.first_line(error)}); use cpu"
                + (f" or cuda:0 to cuda:{n - 1}" if (n := torch.cuda.device_count()) else "")
            ) from error


def check(config: RunConfig, name: str, holds: bool, what: str) -> None:
    """Raise a `UsageError` that names the setting's flag and says `what` it must be, unless it `holds`."""
    if not holds:
        raise UsageError(f"--{name.replace('_', '-')} {getattr(config, name)} {what}")


ConfigType = TypeVar("ConfigType", bound=RunConfig)
Settings = TypeVar("Settings")


def parse(config_class: type[ConfigType], args: list[str]) -> ConfigType:
    """Read a script's settings from its arguments, over those of the run that is resumed, if one is.

    Raises:
        UsageError: an argument that is not understood, or one that a resumed run cannot change.
    """
    # A bare --reward-shaping is the built-in one.
    for i in reversed(range(len(args))):
        if args[i].replace("_", "-") == "--reward-shaping" and (i + 1 == len(args) or args[i + 1].startswith("--")):
            args = [*args[: i + 1], "built-in", *args[i + 1 :]]
    config = tyro_cli(config_class, args)
    if config.resume:
        saved = load_config(config.resume)
        if saved["script"] != config_class.script:
            raise UsageError(f"--resume {config.resume} is a run of the {saved['script']} update, not of this script")
        default = dataclasses.replace(config_from(config_class, saved), resume=config.resume)
        config = tyro_cli(config_class, args, default=default)
        for field in dataclasses.fields(config):
            if field.name not in ("total_timesteps", "img_dir", "quiet"):
                same = getattr(config, field.name) == getattr(default, field.name)
                check(config, field.name, same, "cannot change when a run is resumed; leave it out")
    elif config.preset:
        config = tyro_cli(config_class, args, default=config_class.for_env(config.env))
    return config


def preset(script: str, env: str) -> dict[str, Any]:
    """What `presets.toml` has for an environment, whatever its version."""
    name = env.rpartition(":")[2].rpartition("-v")[0]
    tables = tomllib.loads(PRESETS.read_text()).get(script, {})
    return next((table for environs, table in tables.items() if name in environs.split()), {})


def tyro_cli(config_class: type[Settings], args: list[str], **options: Any) -> Settings:
    """`tyro.cli`, its boxed messages made one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(config_class, args=args, **options)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        # A title and, in a box or, where the terminal has no such characters, below a rule, the message and more.
        lines = [line.strip("│ ") for line in errors.getvalue().splitlines()[1:]]
        lines = list(itertools.dropwhile(lambda line: not line.strip("-"), lines))
        message = " ".join(itertools.takewhile(lambda line: line.strip("─╰╯-"), lines))
        raise UsageError(f"{message.rstrip('.')}; --help lists the flags") from None


def config_from(config_class: type[ConfigType], settings: Mapping[str, Any]) -> ConfigType:
    """A config of the settings that it knows, in the types that it has them in."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        if field.name in settings:
            value = settings[field.name]
            values[field.name] = tuple(value) if isinstance(value, list) else value
            if field.name in ("run_dir", "resume", "img_dir") and value is not None:
                values[field.name] = Path(value)
    return config_class(**values)


# --- The run on disk -------------------------------------------------------------------------------------------------


class Run:
    """A training run: counts its timesteps, logs it, saves it and knows when it is over. Used as a context manager.

    Args:
        config: its settings.
        parts: what a checkpoint keeps, by name: everything that has a `state_dict`. Those of a resumed run are brought
            to where its checkpoint has them.
        env: the environment, or vector of them, that it trains in; brought there too, if its state can be read.
        callback: called with the run and the numbers that go to TensorBoard, by name, whenever they do: once in
            `LOG_INTERVAL` timesteps. It may call `stop`; what it draws at random, if the run is to stay what it is,
            must not come from torch's global generator (`evaluate` leaves that as it is).

    Attributes:
        directory: where it is kept.
        home: where rank 0 keeps it; the others' directories go with them.
        timestep: timesteps trained so far.
        policy: the trained policy, once the script has set it.
        resumed: what the script gave `save`, if the run is resumed and its environments are where they were; else None.
        recent_returns: of the last 20 episodes.
        exit_status: 0, or 128 + the number of the signal that interrupted the run.
    """

    policy: "Policy"

    def __init__(
        self,
        config: RunConfig,
        parts: Mapping[str, Any],
        env: gym.Env | VectorEnv,
        callback: "Callback | None" = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.ranks = ranks
        stamp = time.strftime("%Y%m%d-%H%M%S") + f"-{time.time_ns() // 1000 % 1_000_000:06d}"
        unnamed = Path("runs") / f"{file_name(config.env)}_{config.script}_seed{config.seed}_{stamp}"
        self.directory = self.home = config.resume or config.run_dir or unnamed
        if ranks.size > 1:
            config = self._agree(config)
        self.config = config
        self.parts = parts
        self.env = env
        self.callback = callback
        self.resumed: Any = None
        self.timestep = 0
        self.exit_status = self.interrupted = 0
        self.stopped = False
        self.episodes: tuple[np.ndarray, np.ndarray] | None = None  # returns and lengths so far, of a vector of them
        self.updates: list[Mapping[str, float]] = []  # since the last row of their log
        self.new_episodes: list[tuple[float, int]] = []  # returns and lengths since then
        self.recent_returns: deque[float] = deque(maxlen=20)
        self.elapsed_before = 0.0
        self.next_report = 0
        self.next_save = config.checkpoint_interval
        self.next_log = LOG_INTERVAL
        self.logs = {name: Log(self.directory / name) for name in LOGS}
        if config.resume:
            self._reopen()
        else:
            self._create()

    def _agree(self, config: RunConfig) -> RunConfig:
        """Have the same scripts and settings on all ranks; only rank 0 writes where somebody looks.

        The others keep their run in a folder that goes with them, with what rank 0 has of a run that is resumed.
        """
        mine = {name: repr(value) for name, value in dataclasses.asdict(config).items()}
        mine |= versions() | {"the checksum of its scripts": str(sources())}
        for rank, theirs in enumerate(self.ranks.exchange(mine)):
            for name, value in mine.items():
                if theirs.get(name) != value:
                    raise RankError(
                        f"rank {rank} has {theirs.get(name)} for {name}, and rank {self.ranks.rank} {value}"
                    )
        files = {}
        if config.resume and not self.ranks.rank:
            paths = [config.resume / name for name in ("config.json", "checkpoint.pt", *LOGS)]
            files = {path.name: path.read_bytes() for path in paths if path.exists()}
        files, home = self.ranks.exchange((files, str(self.directory)))[0]
        if not self.ranks.rank:
            return config
        self.folder = tempfile.TemporaryDirectory()
        self.directory = directory = Path(self.folder.name) / "run"
        self.home = Path(home)
        if config.resume:
            directory.mkdir()
            for name, content in files.items():
                (directory / name).write_bytes(content)
            config = dataclasses.replace(config, resume=directory)
        return dataclasses.replace(config, run_dir=directory, img_dir=directory, quiet=True)

    @property
    def unfinished(self) -> bool:
        """Whether there is more to train: timesteps are left, and neither a signal nor `stop` has ended it."""
        return self.timestep < self.config.total_timesteps and not self.exit_status and not self.stopped

    def stop(self) -> None:
        """End the run with the update that is going on, as if its timesteps were through: it is saved and plotted."""
        self.stopped = True

    @property
    def progress(self) -> float:
        """Share of the timesteps that are done, 0 to 1."""
        return min(self.timestep / self.config.total_timesteps, 1.0)

    @property
    def env_seed(self) -> int:
        """Seed of the environments: a resumed run, which starts new episodes, must not play the first ones again."""
        return self.config.seed + self.timestep

    @property
    def wall_time(self) -> float:
        """Seconds spent in training, those before a resume included."""
        return self.elapsed_before + time.monotonic() - self.start

    def __enter__(self) -> Self:
        self.start = self.plotted = time.monotonic()
        self.first_timestep = self.timestep
        for log in self.logs.values():
            log.open()
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
        # Not EventFileWriter, whose thread, should the disk be full, is waited for for ever.
        self.events = RecordWriter((self.directory / name).open("wb"))
        self._write_event(file_version="brain.Event:2")
        self._write_event(step=self.timestep + 1, session_log=SessionLog(status=SessionLog.START))  # forget later ones
        self.bar = tqdm(
            total=self.config.total_timesteps,
            initial=self.timestep,
            desc=file_name(self.config.env),
            unit=" timesteps",
            unit_scale=True,
            disable=True if self.config.quiet else None,  # no bar where standard error is no terminal, but lines
        )
        self.handlers = {}
        with contextlib.suppress(ValueError):  # not in the main thread: there the caller decides
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._interrupt)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        self._set_alarm(0)
        if isinstance(error, RuntimeError) and self.ranks.size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends all ranks when one has ended
            with contextlib.suppress(RuntimeError):  # torchrun itself may be gone
                silent = self.ranks.silent()
                error = TrainingError(f"rank {silent[0]} has ended, or does not answer") if silent else error
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.bar.close()
        try:
            self.events.close()
            for log in self.logs.values():
                log.file.close()
            if error is None:
                self.plot(self.directory / "reward.png", self.image_path)
        except OSError as closing:  # a full disk, say
            error = error or closing
        self.lock.release()
        if isinstance(error, (Exception, StoppedError)):
            there = (self.directory / "checkpoint.pt").exists()
            saved = f"the last checkpoint is {self.home / 'checkpoint.pt'}" if there else "there is no checkpoint"
            what, ours = environments.first_line(error), (str(self.directory), str(self.config.img_dir))
            if isinstance(error, OSError) and (error.errno in DISK_ERRORS or str(error.filename).startswith(ours)):
                what = f"{error.filename or self.directory} cannot be written: {error.strerror}"
            elif isinstance(error, Exception) and not isinstance(error, TrainingError):
                what = f"{type(error).__name__}: {what}"
                with contextlib.suppress(OSError):  # the directory may be gone, or the disk full as well
                    report = self.directory / "error.txt"
                    if self.ranks.rank:
                        report = Path(tempfile.mkstemp(".txt", f"error_rank{self.ranks.rank}_")[1])
                    report.write_text("".join(traceback.format_exception(error)))
                    what += f" (all of it in {report})"
            where = f"rank {self.ranks.rank}, " * (self.ranks.size > 1)
            message = f"{where}at timestep {self.timestep}: {what}; {saved}"
            if isinstance(error, StoppedError):
                raise StoppedError(message, error.exit_status) from error
            raise TrainingError(message) from error

    def count(self, timesteps: int) -> None:
        """Count timesteps played; a signal that came meanwhile is heeded from here on, by all that ask for it."""
        self.timestep += timesteps
        if self.ranks.size == 1:  # else they have to agree first
            self.exit_status = self.interrupted
        self._set_alarm(PATIENCE)  # anew: the environment answers

    def log_rewards(self, rewards: np.ndarray, done: np.ndarray) -> None:
        """Log the episodes that ended in the steps just counted.

        Args:
            rewards: the environments' own rewards, neither shaped nor normalised, (T, N); of this rank's N.
            done: whether an episode ended with them, (T, N).
        """
        if self.ranks.size > 1:
            signals = np.full_like(rewards[:1], self.interrupted)
            told = self.ranks.gather(np.concatenate((rewards, done, signals)))
            rewards, done, signals = np.split(told, [len(rewards), 2 * len(rewards)])
            self.exit_status = int(signals.max())
        steps, num_envs = rewards.shape
        if self.episodes is None:
            self.episodes = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
        returns, lengths = self.episodes
        sums = returns + rewards.cumsum(axis=0)
        ends = lengths + np.arange(1, steps + 1)[:, None]
        returns, lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
        for t, i in zip(*done.nonzero(), strict=True):
            timestep = self.timestep - (steps - 1 - int(t)) * num_envs
            self.log_episode(float(sums[t, i] - returns[i]), int(ends[t, i] - lengths[i]), timestep)
            returns[i], lengths[i] = sums[t, i], ends[t, i]
        self.episodes = sums[-1] - returns, ends[-1] - lengths

    def log_episode(self, episode_return: float, length: int, timestep: int | None = None) -> None:
        """Log an episode that ended at a timestep, or with the last one counted."""
        timestep = self.timestep if timestep is None else timestep
        self.recent_returns.append(episode_return)
        self.new_episodes.append((episode_return, length))
        self.logs["episodes.csv"].writer.writerow([timestep, episode_return, length, round(self.wall_time, 3)])

    def log_update(self, metrics: Mapping[str, float]) -> None:
        """Log what an update says of itself, a number for each of `METRICS`, and show progress.

        A row of the log is the mean over the updates of `LOG_INTERVAL` timesteps.

        Raises:
            TrainingError: a loss or a gradient norm is not finite.
        """
        for name, value in metrics.items():
            if name != "explained_variance":  # not a number where all returns are the same
                self.check_finite(name, value)
        self.updates.append(metrics)
        if self.log_due:
            self._log_updates()

    @property
    def log_due(self) -> bool:
        """Whether it is time for a row of the updates' log: an interval has gone by, or this is the end."""
        return self.timestep >= min(self.next_log, self.config.total_timesteps)

    def _log_updates(self) -> None:
        means = np.mean([[metrics[name] for name in METRICS] for metrics in self.updates], axis=0).tolist()
        rate = (self.timestep - self.first_timestep) / (time.monotonic() - self.start)
        row = [self.timestep, *means, round(rate), round(self.wall_time, 3)]
        self.logs["updates.csv"].writer.writerow(row)
        for log in self.logs.values():
            log.file.flush()
        scalars = {f"losses/{name}": mean for name, mean in zip(METRICS, means, strict=True)} | {"charts/SPS": rate}
        if self.new_episodes:
            episodic_return, episodic_length = np.mean(self.new_episodes, axis=0).tolist()
            scalars |= {"charts/episodic_return": episodic_return, "charts/episodic_length": episodic_length}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write_event(step=self.timestep, summary=Summary(value=values))
        if self.callback:
            self.callback(self, scalars)
        self.updates.clear()
        self.new_episodes.clear()
        self.next_log = self.timestep + LOG_INTERVAL
        mean = f"{np.mean(self.recent_returns):.1f}" if self.recent_returns else "-"
        self.bar.set_postfix_str(f"return {mean}", refresh=False)
        self.bar.update(self.timestep - self.bar.n)
        if self.bar.disable and not self.config.quiet and self.timestep >= self.next_report:
            left = (self.config.total_timesteps - self.timestep) / rate
            print(
                f"timestep {self.timestep}/{self.config.total_timesteps}  mean return {mean}"
                f"  {rate:,.0f} timesteps/s  {max(left, 0):.0f} s left",
                flush=True,
            )
            self.next_report = self.timestep + self.config.total_timesteps // 10

    def _write_event(self, **content: Any) -> None:
        self.events.write(Event(wall_time=time.time(), **content).SerializeToString())
        self.events.flush()

    def check_steps(self, what: str, values: np.ndarray) -> None:
        """Raise a `TrainingError` if any value of the steps just counted, (T, N, ...), is NaN or infinite."""
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            self.timestep -= (len(values) - 1 - int(finite.argmin())) * values.shape[1]  # what the message names
            self.check_finite(what, np.nan)

    def check_finite(self, what: str, values: Any) -> None:
        """Raise a `TrainingError` if any of the values is NaN or infinite."""
        if not np.isfinite(values).all():
            raise TrainingError(f"{what} is not finite; a lower learning rate or reward scale usually helps")

    @property
    def save_due(self) -> bool:
        """Whether it is time for a checkpoint: an interval has gone by, or this is the end."""
        return self.timestep >= self.next_save or not self.unfinished

    def save(self, *loop: Any) -> None:
        """Write the checkpoint, whole or not at all; the one before it is kept as checkpoint_previous.pt.

        Args:
            loop: what else the script needs to go on from here, tensors and plain data; a resumed run has it in
                `resumed`.
        """
        self._set_alarm(0)
        self.next_save = self.timestep + self.config.checkpoint_interval
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"format": CHECKPOINT_FORMAT, "rng": torch.get_rng_state()}
        on_cuda = torch.device(self.config.device).type == "cuda"
        state["cuda_rng"] = torch.cuda.get_rng_state(self.config.device) if on_cuda else None
        state |= {"timestep": self.timestep, "wall_time": self.wall_time}
        state["progress"] = env_states.read({name: getattr(self, name) for name in PROGRESS})
        try:
            world = env_states.read([self.env, self.episodes, loop])
        except (env_states.UnreadableError, RecursionError):  # the latter of one that holds itself
            world = None
        state["worlds"] = self.ranks.exchange(world)
        state["logs"] = {name: log.mark() for name, log in self.logs.items()}
        state["config"] = zlib.crc32((self.directory / "config.json").read_bytes())
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        checkpoint = self.directory / "checkpoint.pt"
        if checkpoint.exists():
            write_atomically(self.directory / "checkpoint_previous.pt", checkpoint.read_bytes())
        write_atomically(checkpoint, content + hashlib.sha256(content).digest())
        if time.monotonic() > self.plotted + PLOT_INTERVAL:
            self.plot(self.directory / "reward.png")

    def _create(self) -> None:
        self._check_new()
        check_writable("--img-dir", self.config.img_dir)
        check_writable("--run-dir", self.directory)
        settings = {**dataclasses.asdict(self.config), "script": self.config.script}
        del settings["resume"]
        about = {"versions": versions(), "commit": commit()}
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock("--run-dir")
            self._check_new()  # again: another process may have had it meanwhile
            text = json.dumps(settings | about, indent=2, default=str) + "\n"
            write_atomically(self.directory / "config.json", text.encode())
            for name, columns in LOGS.items():
                (self.directory / name).write_text(",".join(columns) + "\n")
        except OSError as error:
            raise UsageError(f"--run-dir {self.directory} cannot be written: {error.strerror}") from error

    def _check_new(self) -> None:
        if any((self.directory / name).exists() for name in ("config.json", "checkpoint.pt", *LOGS)):
            raise UsageError(
                f"--run-dir {self.directory} already holds a run; --resume {self.directory} continues it,"
                " or choose another directory"
            )

    def _lock(self, flag: str) -> None:
        """Keep other processes out of the directory as long as this one lives."""
        self.lock = FileLock(self.directory / "lock", timeout=0)
        try:
            self.lock.acquire()
        except Timeout:
            raise UsageError(f"{flag} {self.directory} is in use by another process; stop that one first") from None

    def _reopen(self) -> None:
        check_writable("--resume", self.directory)
        self._lock("--resume")
        state = load_checkpoint(self.directory)
        with fitting(self.directory):
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["rng"])
            self.timestep, self.elapsed_before = int(state["timestep"]), float(state["wall_time"])
            progress = env_states.write({name: getattr(self, name) for name in PROGRESS}, state["progress"])
            for name in PROGRESS:
                setattr(self, name, progress[name])
            worlds = state["worlds"] if "worlds" in state else [state["world"]]  # the latter before format 3
            if len(worlds) == self.ranks.size and None not in worlds:
                _, self.episodes, loop = env_states.write([self.env, None, None], worlds[self.ranks.rank])
                self.resumed = [part.to(self.config.device) if isinstance(part, Tensor) else part for part in loop]
            if state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"], self.config.device)
            for name, log in self.logs.items():
                log.check(*state["logs"][name])
        for log in self.logs.values():  # what was logged after the checkpoint is about to happen again
            log.cut()
        why = "their state cannot be read" if len(worlds) == self.ranks.size else f"there were {len(worlds)} ranks"
        what = "where they were" if self.resumed else f"in new episodes, since {why}"
        if not self.config.quiet:
            print(f"resumed at timestep {self.timestep}, the environments {what}")

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.interrupted:  # once more, or the alarm
            raise StoppedError("stopped in the middle of an update", self.interrupted)
        self.interrupted = 128 + number
        if ALARMS:
            self.handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._interrupt)
        self._set_alarm(PATIENCE)

    def _set_alarm(self, seconds: float) -> None:
        """Have an interrupted run sent a SIGALRM after so many seconds, or none (0), where the system has such."""
        if self.interrupted and ALARMS:  # else it may be somebody else's alarm
            signal.setitimer(signal.ITIMER_REAL, seconds)

    @property
    def image_path(self) -> Path:
        """The plot in the folder of images, which the next run of this environment draws anew."""
        suffix = "_epoch" if self.config.script == "epoch" else ""
        return self.config.img_dir / f"A2C_{file_name(self.config.env)}{suffix}.png"

    def plot(self, *paths: Path) -> None:
        """Draw the returns of the episodes so far."""
        self.plotted = time.monotonic()
        with (self.directory / "episodes.csv").open(newline="") as file:
            episodes = [(int(row["timestep"]), float(row["return"])) for row in csv.DictReader(file)]
        timesteps, returns = [timestep for timestep, _ in episodes], [value for _, value in episodes]
        title = f"A2C, {self.config.script} update: {file_name(self.config.env)}, seed {self.config.seed}"
        for path in paths:
            plot_returns(path, timesteps, returns, title)


class Log:
    """A CSV file that can be cut back to what it was when a checkpoint was written.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = self.crc = 0

    def open(self) -> None:
        """Open it for more rows."""
        self.file = self.path.open("a", newline="")
        self.writer = csv.writer(self.file, lineterminator="\n")

    def mark(self) -> tuple[int, int]:
        """Bring all rows to the disk; returns the size of the file, in bytes, and its checksum."""
        self.file.flush()
        os.fsync(self.file.fileno())
        with self.path.open("rb") as file:
            file.seek(self.size)
            new = file.read()
        self.size, self.crc = self.size + len(new), zlib.crc32(new, self.crc)
        return self.size, self.crc

    def check(self, size: int, crc: int) -> None:
        """Go back to a mark; raises a `UsageError` if what came before it is no longer as it was."""
        try:
            with self.path.open("rb") as file:
                content = file.read(size)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error.strerror}") from error
        if zlib.crc32(content) != crc:
            raise UsageError(f"{self.path} is not as the checkpoint left it: damaged, or of another run")
        self.size, self.crc = size, crc

    def cut(self) -> None:
        """Take away all that came after the mark."""
        os.truncate(self.path, self.size)


def file_name(env_id: str) -> str:
    """An environment's id, without its module, as a part of a file name."""
    return env_id.rpartition(":")[2].replace("/", "-")


def check_writable(flag: str, directory: Path) -> None:
    """Raise a `UsageError` if a directory is not there and cannot be made, or cannot be written; makes nothing."""
    existing = next(path for path in (directory.absolute(), *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(f"{flag} {directory} cannot be made: {existing} is not a directory; choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{flag} {directory} cannot be written: no permission in {existing}; choose another")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file by `content` at once: whoever reads it, also after a crash, finds the old one or the new one."""
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
    """The `config.json` of a run; raises a `UsageError` if the directory holds none that can be read."""
    try:
        config = json.loads((directory / "config.json").read_text())
        if isinstance(config, dict) and {"script", "env", "hidden_sizes", "activation"} <= config.keys():
            return config
        raise ValueError("settings are missing")
    except OSError as error:
        raise UsageError(f"{directory} is not the directory of a run: no config.json ({error.strerror})") from error
    except ValueError as error:
        raise UsageError(f"{directory / 'config.json'} is damaged: {error}") from error


def load_checkpoint(directory: Path) -> dict[str, Any]:
    """The state in a run's `checkpoint.pt`; nothing in it can run code (`weights_only`)."""
    path = directory / "checkpoint.pt"
    try:
        content = path.read_bytes()
        config = zlib.crc32((directory / "config.json").read_bytes())
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read: {error.strerror}; was there a checkpoint yet?") from error
    previous = path.with_name("checkpoint_previous.pt")
    hint = f"; {previous.name}, the one before, may be put in its place" if previous.exists() else ""
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise UsageError(f"{path} is damaged, or no checkpoint of these scripts{hint}")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is no checkpoint of these scripts: {environments.first_line(error)}") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise UsageError(f"{path} is no checkpoint of these scripts")
    if state["format"] > CHECKPOINT_FORMAT:
        raise UsageError(f"{path} was written by a newer version of these scripts; use that")
    if state.get("config") != config:
        raise UsageError(f"{directory / 'config.json'} is not the one with which the checkpoint was written")
    return state


@contextlib.contextmanager
def fitting(directory: Path) -> Iterator[None]:
    """Turn what goes wrong in loading a checkpoint, whole but not of this run, into a `UsageError`."""
    try:
        yield
    except UsageError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = environments.first_line(error)
        raise UsageError(f"{directory / 'checkpoint.pt'} does not fit its config.json: {what}") from error


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the numbers depend on."""
    libraries = ("torch", "gymnasium", "numpy", "mujoco")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in libraries}


def sources() -> int:
    """A checksum of these scripts' code."""
    return zlib.crc32(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))


def commit() -> str | None:
    """The commit of these scripts, with a + if they were changed since; None outside a git checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


class Compiled:
    """A method under torch.compile: compiled at its first call, for arguments of the shapes that it has there.

    From then on the compiled code is called as such, with the tensors that it was compiled with but for the arguments:
    what torch.compile would check and wrap around each call takes as long as the work. So whatever else the method
    uses may change its numbers, in place, but not its nature. Where compiling fails, for want of a C++ compiler say,
    `failed` is told why and the method runs as it is.

    Args:
        method: takes tensors and tuples of tensors, and returns a tensor or a tuple of them.
    """

    OPTIONS: ClassVar[dict[str, Any]] = {
        "cpp_wrapper": True,
        "memory_planning": True,  # one allocation for all that a call needs, not one each
        "size_asserts": False,
        # Products of a vector and a matrix become loops, fused with all around them, not calls of a library.
        "post_grad_fusion_options": {"decompose_mm_pass": {"cpu_max_first_dimension_decomposition": 64}},
    }

    def __init__(self, method: Callable[..., Any], failed: Callable[[Exception], None]) -> None:
        self.method = method
        self.failed = failed
        self.fast: Callable[..., Any] | None = None

    def __call__(self, *args: Any) -> Any:
        if self.fast:
            return self.fast(*args)
        try:
            results, self.fast = self._compile(args)
        except Exception as error:  # there is no telling what a compiler raises
            self.failed(error)
            self.fast = self.method
            results = self.method(*args)
        return results

    def _compile(self, args: tuple[Any, ...]) -> tuple[Any, Callable[..., Any]]:
        """Compile the method and call it once; returns what it returned, and the function to call from then on."""
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner  # which takes two seconds to import

        inputs: list[Tensor | None] = []
        outputs: list[Tensor] = []
        calls: list[Callable[[list[Any]], list[Tensor]]] = []

        def inner_compile(*args: Any, **options: Any) -> Any:
            graph: Any = compile_fx_inner(*args, **options)
            call = graph.current_callable
            calls.append(call)

            def record(given: list[Any]) -> list[Tensor]:
                outputs[:] = call(given)
                return outputs

            graph.current_callable = record
            return graph

        def backend(graph: Any, example_inputs: list[Tensor]) -> Any:
            inputs.extend(example_inputs)
            return compile_fx(graph, example_inputs, inner_compile=inner_compile, config_patches=self.OPTIONS)

        # Apart from all else that was compiled in this process: torch.compile gives up at the ninth variant.
        options: Any = {"backend": backend, "fullgraph": True, "isolate_recompiles": True}
        method = torch.compile(self.method, **options)
        # What this cache finds never comes by inner_compile; compile_fx_inner has one of its own.
        with torch._functorch.config.patch(enable_autograd_cache=False):
            results = method(*args)
        several = isinstance(results, tuple)
        returned = list(results) if several else [results]
        if len(calls) != 1 or list(map(id, returned)) != list(map(id, outputs)):
            return results, method  # one that returns an argument, say: more is to be done than the compiled code does
        call, sources = calls[0], flat(args)
        places = [
            (place, i) for place, given in enumerate(inputs) for i, source in enumerate(sources) if given is source
        ]
        for place, _ in places:
            inputs[place] = None  # not kept

        def fast(*args: Any) -> Any:
            given, sources = inputs.copy(), flat(args)
            for place, i in places:
                given[place] = sources[i]
            results = call(given)
            return results if several else results[0]

        return results, fast


def flat(args: tuple[Any, ...]) -> list[Any]:
    """The tensors among arguments, those in tuples too."""
    return [tensor for arg in args for tensor in (arg if isinstance(arg, tuple) else (arg,))]


def compile_methods(learner: object, *names: str) -> None:
    """Put these methods of a learner under torch.compile, see `Compiled`; should that fail, say so once."""
    torch._dynamo.config.trace_autograd_ops = True  # torch.autograd.grad is a part of the graph
    reported: list[Exception] = []

    def failed(error: Exception) -> None:
        if not reported:
            sys.stderr.write(f"not compiled ({environments.first_line(error)}); running on without\n")
        reported.append(error)

    for name in names:
        setattr(learner, name, Compiled(getattr(learner, name), failed))


# --- The trained policy ----------------------------------------------------------------------------------------------


class Policy:
    """An actor with all that stands between it and the environment: the frozen normaliser and the range of actions."""

    def __init__(self, actor: nn.Module, normalizer: ObservationNormalizer, action_map: ActionMap) -> None:
        self.actor = actor
        self.normalizer = normalizer
        self.action_map = action_map
        self.device = next(actor.parameters()).device

    @torch.no_grad()
    def __call__(self, observations: np.ndarray, stochastic: bool = False) -> np.ndarray:
        """Actions for the environments, from observations (N, D): the mode of the policy, or a sample of it."""
        distribution = self.actor(self.normalizer(torch.as_tensor(observations, device=self.device)))
        actions = distribution.sample() if stochastic else distribution.mode
        return self.action_map(actions).cpu().numpy()


def make_actor(config: RunConfig, observation_size: int, action_map: ActionMap) -> GaussianActor | CategoricalActor:
    """A Gaussian actor for continuous actions, else a categorical one."""
    if action_map.continuous:
        limit = config.mean_limit or math.inf
        limits = [limit if bounded else math.inf for bounded in action_map.bounded]
        return GaussianActor(observation_size, limits, config.hidden, config.state_std).to(config.device)
    return CategoricalActor(observation_size, action_map.nvec, config.hidden).to(config.device)


def load_policy(directory: Path) -> tuple[Policy, str]:
    """The policy of a finished or interrupted run, and the id of its environment."""
    config, state = config_from(RunConfig, load_config(directory) | {"device": "cpu"}), load_checkpoint(directory)
    env = environments.make_env(config.env)
    observation_size = spaces.flatdim(env.observation_space)
    action_map = ActionMap(env.action_space)
    actor = make_actor(config, observation_size, action_map)
    normalizer = ObservationNormalizer(observation_size)
    with fitting(directory):
        actor.load_state_dict(state["actor"])
        normalizer.load_state_dict(state["obs_normalizer"])
    return Policy(actor, normalizer, action_map), config.env


def load_critic(directory: Path, policy: Policy) -> Callable[[np.ndarray], np.ndarray]:
    """The critic of a run, as a function from observations (N, D) to values (N,); `policy` is that of the run."""
    config, state = config_from(RunConfig, load_config(directory)), load_checkpoint(directory)
    critic = Critic(len(policy.normalizer.mean), config.hidden)
    with fitting(directory):
        critic.load_state_dict(state["critic"])

    @torch.no_grad()
    def value(observations: np.ndarray) -> np.ndarray:
        return critic(policy.normalizer(torch.as_tensor(observations))).numpy()

    return value


def evaluate(
    policy: Policy,
    env_id: str,
    episodes: int,
    seed: int,
    stochastic: bool = False,
    env_fn: EnvFn | None = None,
    num_envs: int = 20,
) -> dict[str, Any]:
    """Play whole episodes with a frozen policy, and tell the returns: the environment's own rewards, summed.

    Several environments play side by side, each a number of episodes settled beforehand: to take the first ones that
    end would favour the short ones.

    Returns:
        `env`, `episodes`, `mean_return`, `std_return`, `min_return`.
    """
    num_envs = min(episodes, num_envs)
    remaining = np.array([len(range(i, episodes, num_envs)) for i in range(num_envs)])
    envs = environments.make_vector_env(env_id, num_envs, env_fn)
    observations = environments.reset_all(envs, seed)
    current, returns = np.zeros(num_envs), []
    with torch.random.fork_rng([policy.device] if policy.device.type == "cuda" else []):  # a run's may be going on
        torch.manual_seed(seed)
        while remaining.any():
            observations, rewards, terminated, truncated, _ = envs.step(policy(observations, stochastic))
            done = terminated | truncated
            current += rewards
            if done.any():
                returns += current[done & (remaining > 0)].tolist()
                remaining[done] = np.maximum(remaining[done] - 1, 0)
                current[done] = 0.0
                observations, _ = envs.reset(options={"reset_mask": done})
    envs.close()
    return {
        "env": env_id,
        "episodes": episodes,
        "mean_return": float(np.mean(returns)),
        "std_return": float(np.std(returns)),
        "min_return": float(np.min(returns)),
    }


def main(config_class: type[ConfigType], train: Callable[[ConfigType], Run]) -> None:
    """The command line of a script: train, say where everything is and how the policy scores, and exit."""
    torch.set_num_threads(1)  # networks this small lose more to the hand-over between threads than they gain
    keep_memory()
    try:
        config = parse(config_class, sys.argv[1:])
        if config.script == "step" and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UsageError("the step update is a single process; start it without torchrun, or use the epoch update")
        settings = preset(config.script, config.env) if config.preset and not config.resume else {}
        if settings and not config.quiet:
            shown = ", ".join(f"{name} {getattr(config, name)}" for name in settings)
            print(f"settings for {config.env} (--no-preset: the defaults): {shown}")
        run = train(config)
        if run.config.quiet:
            sys.exit(run.exit_status)
        print(f"run: {run.directory}\nplot: {run.image_path}")
        if run.exit_status:
            print(f"interrupted at timestep {run.timestep}; --resume {run.directory} continues")
        else:
            score = evaluate(run.policy, run.config.env, episodes=20, seed=run.config.seed + 1_000_000)
            print(
                f"score: {score['mean_return']:.1f} +- {score['std_return']:.1f} over 20 episodes of the final policy"
            )
    except UsageError as error:
        fail(error, 2)
    except (TrainingError, RankError) as error:
        fail(error, 1)
    except KeyboardInterrupt as stop:
        fail(stop, getattr(stop, "exit_status", 128 + signal.SIGINT))
    except OSError as error:  # a disk that is full before training has begun, say
        fail(TrainingError(f"{error.filename or 'a file'} cannot be written: {error.strerror}"), 1)
    sys.exit(run.exit_status)


def keep_memory() -> None:
    """Keep what is freed for the next allocation, up to 256 MiB, where the C library is glibc.

    By default it gives the tensors of an update back to the system at the update's end, and takes them anew in the
    next, page by page: two thirds on top of the time that the update itself needs.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, at its largest
        libc.mallopt(-1, 256 * 2**20)  # M_TRIM_THRESHOLD


def fail(error: BaseException, status: int) -> NoReturn:
    """End the process with one line on standard error, in one piece: several ranks write theirs at once."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {' '.join(str(error).split()) or 'interrupted'}\n")
    sys.exit(status)
