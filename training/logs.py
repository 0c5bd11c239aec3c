"""The logs of a run: CSV files and TensorBoard events."""

import csv
import os
import platform
import time
import zlib
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from environments import UsageError
from training.files import EPISODES, EVALUATIONS, UPDATES

METRICS = ["policy_loss", "value_loss", "entropy", "explained_variance", "actor_grad_norm", "critic_grad_norm"]
COLUMNS = {
    EPISODES: ["timestep", "return", "length", "wall_time"],
    UPDATES: ["timestep", *METRICS, "mean_reward", "timesteps_per_second", "wall_time"],
    EVALUATIONS: ["timestep", "mean_return", "std_return", "min_return", "wall_time"],
}
LOG_INTERVAL = 1000
"""Timesteps between rows of updates.csv, at least."""


class CsvFile:
    """A CSV file that can be truncated to its size at a checkpoint.

    Args:
        path: of the file, which has its header already.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = self.crc = 0

    def open(self) -> None:
        """Open it for appending."""
        self.file = self.path.open("a", newline="")
        self.writer = csv.writer(self.file, lineterminator="\n")

    def mark(self) -> tuple[int, int]:
        """Write all rows to the disk; returns the size of the file, in bytes, and its checksum."""
        self.file.flush()
        os.fsync(self.file.fileno())
        with self.path.open("rb") as file:
            file.seek(self.size)
            new = file.read()
        self.size, self.crc = self.size + len(new), zlib.crc32(new, self.crc)
        return self.size, self.crc

    def check(self, size: int, crc: int) -> None:
        """Set the size to truncate to; raises a `UsageError` if the file up to there is not as it was at the mark."""
        try:
            with self.path.open("rb") as file:
                content = file.read(size)
        except OSError as error:
            raise UsageError(f"{self.path} cannot be read: {error.strerror}") from error
        if zlib.crc32(content) != crc:
            raise UsageError(f"{self.path} has changed since the checkpoint was written; restore it")
        self.size, self.crc = size, crc

    def truncate(self) -> None:
        """Remove everything after the mark."""
        os.truncate(self.path, self.size)


class EventFile:
    """A file of scalars for TensorBoard.

    Args:
        directory: of the run.
        timestep: where the run begins or is resumed; TensorBoard ignores later events of earlier files.
    """

    def __init__(self, directory: Path, timestep: int) -> None:
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
        # Not TensorBoard's EventFileWriter: if the disk is full, closing it waits for its thread forever.
        self.writer = RecordWriter((directory / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._write(step=timestep + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, timestep: int, scalars: Mapping[str, float]) -> None:
        """Write scalars by name."""
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(step=timestep, summary=Summary(value=values))

    def close(self) -> None:
        self.writer.close()

    def _write(self, **content: Any) -> None:
        self.writer.write(Event(wall_time=time.time(), **content).SerializeToString())
        self.writer.flush()


class TrainingLog:
    """The episodes and updates of a run, in its CSV files and for TensorBoard.

    Args:
        directory: of the run.

    Attributes:
        recent_returns: of the last 20 episodes.
        rewards, steps: sum of the environment's own rewards since the last row, and of how many steps.
        mean_reward: of the steps of the last row; the environment's own rewards.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.files = {name: CsvFile(directory / name) for name in COLUMNS}
        self.updates: list[Mapping[str, float]] = []  # since the last row
        self.new_episodes: list[tuple[float, int]] = []  # returns and lengths since the last row
        self.rewards = self.steps = 0.0
        self.mean_reward = np.nan
        self.recent_returns: deque[float] = deque(maxlen=20)
        self.next_row = LOG_INTERVAL

    def open(self, timestep: int) -> None:
        """Open the files, where the run begins or is resumed at a timestep."""
        for file in self.files.values():
            file.open()
        self.events = EventFile(self.directory, timestep)

    def close(self) -> None:
        """Close all files; raises an `OSError` if the disk is full."""
        self.events.close()
        for file in self.files.values():
            file.file.close()

    def add_episode(self, timestep: int, episode_return: float, length: int, wall_time: float) -> None:
        """Log an episode that has ended."""
        self.recent_returns.append(episode_return)
        self.new_episodes.append((episode_return, length))
        self.files[EPISODES].writer.writerow([timestep, episode_return, length, round(wall_time, 3)])

    def write_row(self, timestep: int, rate: float, wall_time: float) -> dict[str, float]:
        """Log the mean of the updates since the last row; returns the scalars that TensorBoard gets, by name.

        The CSV file has the columns `METRICS`, NaN where an algorithm has no such metric; TensorBoard gets all metrics.
        """
        names = list(self.updates[0])
        table = [[metrics[name] for name in names] for metrics in self.updates]
        means = dict(zip(names, np.mean(table, axis=0).tolist(), strict=True))
        columns = [means.get(name, np.nan) for name in METRICS]
        self.mean_reward = self.rewards / max(self.steps, 1)
        self.files[UPDATES].writer.writerow([timestep, *columns, self.mean_reward, round(rate), round(wall_time, 3)])
        for file in self.files.values():
            file.file.flush()
        scalars = {f"losses/{name}": mean for name, mean in means.items()}
        scalars |= {"charts/SPS": rate, "charts/mean_reward": self.mean_reward}
        if self.new_episodes:
            episodic_return, episodic_length = np.mean(self.new_episodes, axis=0).tolist()
            scalars |= {"charts/episodic_return": episodic_return, "charts/episodic_length": episodic_length}
        self.events.write(timestep, scalars)
        return scalars

    def start_row(self, timestep: int) -> None:
        """Begin to collect the updates of the next row."""
        self.updates.clear()
        self.new_episodes.clear()
        self.rewards = self.steps = 0.0
        self.next_row = timestep + LOG_INTERVAL

    def mark(self) -> dict[str, Any]:
        """What a checkpoint saves: the sizes and checksums of the files, and what the next row will hold."""
        return {
            "files": {name: file.mark() for name, file in self.files.items()},
            "updates": [dict(metrics) for metrics in self.updates],
            "new_episodes": list(self.new_episodes),
            "recent_returns": list(self.recent_returns),
            "rewards": [self.rewards, self.steps],
            "next_row": self.next_row,
        }

    def restore(self, mark: Mapping[str, Any]) -> None:
        """Restore a mark; call `truncate` to cut the files. Raises a `UsageError` if a file was changed before it."""
        for name, file in self.files.items():
            file.check(*mark["files"][name])
        self.updates, self.new_episodes = list(mark["updates"]), list(mark["new_episodes"])
        self.recent_returns.extend(mark["recent_returns"])
        self.rewards, self.steps = map(float, mark["rewards"])
        self.next_row = int(mark["next_row"])

    def truncate(self) -> None:
        """Remove what was logged after the mark: it is about to happen again."""
        for file in self.files.values():
            file.truncate()

    def episodes(self) -> tuple[list[int], list[float]]:
        """Timesteps and returns of all episodes so far."""
        with (self.directory / EPISODES).open(newline="") as file:
            rows = list(csv.DictReader(file))
        return [int(row["timestep"]) for row in rows], [float(row["return"]) for row in rows]


class EpisodeCounter:
    """Computes returns and lengths of episodes from the rewards of N environments.

    Attributes:
        returns, lengths: of the unfinished episodes, (N,); None before the first step.
    """

    def __init__(self) -> None:
        self.returns: np.ndarray | None = None
        self.lengths: np.ndarray | None = None

    def add(self, rewards: np.ndarray, done: np.ndarray) -> Iterator[tuple[int, float, int]]:
        """Add the rewards and ends of T steps, (T, N); yields the step, return and length of every finished episode."""
        steps, num_envs = rewards.shape
        if self.returns is None or self.lengths is None:
            self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
        sums = self.returns + rewards.cumsum(axis=0)
        ends = self.lengths + np.arange(1, steps + 1)[:, None]
        last_sums, last_ends = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)  # at the last end of an episode
        for t, i in zip(*done.nonzero(), strict=True):
            yield int(t), float(sums[t, i] - last_sums[i]), int(ends[t, i] - last_ends[i])
            last_sums[i], last_ends[i] = sums[t, i], ends[t, i]
        self.returns, self.lengths = sums[-1] - last_sums, ends[-1] - last_ends
