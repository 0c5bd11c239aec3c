"""Many runs: train and evaluate them in worker processes, and keep the results as rows of CSV files.

Each run is a process, so that its failure does not affect the others, with a directory below `runs/experiments`, where
an interrupted run is found again and continued.
"""

import contextlib
import csv
import hashlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from environments import UsageError
from training.files import load_config, write_atomically
from training.provenance import PROJECT, commit

DIRECTORY = Path("runs") / "experiments"
EPISODES = 100
"""Episodes of an evaluation."""
EVALUATION_SEED = 1_000
"""The seed of an evaluation is this plus the seed of the run: training uses other ones."""
POINTS = 50
"""Points of a learning curve."""
WINDOW = 20
"""A point of a learning curve is the mean return of this many training episodes."""


class Task(NamedTuple):
    """A run to train and to evaluate."""

    script: str
    """Which update: step or epoch."""
    env: str
    timesteps: int
    flags: str
    """Settings that are not the defaults, as on the command line."""
    seed: int
    env_kwargs: str = "{}"
    """Arguments for the environment, as JSON."""

    @property
    def directory(self) -> Path:
        """Where it is kept."""
        env = self.env.rpartition(":")[2] + ("" if self.env_kwargs == "{}" else self.env_kwargs)
        name = f"{env}_{self.script}_{self.timesteps}_{self.flags}_seed{self.seed}"
        # The digest tells apart what differs only in the characters that are replaced, or after the end.
        return DIRECTORY / f"{re.sub(r'[^a-zA-Z0-9_.]+', '-', name)[:100]}-{digest(*self)}"

    @property
    def progress(self) -> int:
        """Timesteps trained so far."""
        log = self.directory / "updates.csv"
        last = log.read_text().rpartition("\n")[0].rpartition("\n")[2] if log.exists() else ""
        timestep = last.partition(",")[0]
        return int(timestep) if timestep.isdigit() else 0


def digest(*values: object) -> str:
    """Eight characters that are others for other values."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:8]


class FailedError(Exception):
    """A run failed; says which, and why in its own words."""


def train_all(
    tasks: Sequence[Task], workers: int, keep: Callable[[Task, dict[str, Any]], None], episodes: int = EPISODES
) -> int:
    """Train and score runs in worker processes, under one progress bar; a run that fails is reported in a line.

    Args:
        workers: how many at once.
        keep: called in this thread with each finished task and its evaluation, as `evaluate.py` prints it, with its
            `commit`.
        episodes: of an evaluation.

    Returns:
        How many failed.

    Raises:
        UsageError: the settings of a run are invalid; the others are stopped.
    """
    stop, failed, through = Event(), 0, 0
    with ThreadPoolExecutor(workers) as pool:
        going: dict[Future[dict[str, Any]], Task] = {pool.submit(train, task, stop, episodes): task for task in tasks}
        total = sum(task.timesteps for task in tasks)
        bar = tqdm(total=total, unit=" timesteps", unit_scale=True, disable=None, smoothing=0.02)
        try:
            while going:
                done, _ = wait(going, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    task = going.pop(future)
                    through += task.timesteps
                    try:
                        keep(task, future.result())
                    except FailedError as error:
                        failed += 1
                        bar.write(str(error), file=sys.stderr)
                    if bar.disable:
                        print(f"{len(tasks) - len(going)} of {len(tasks)} runs: {task.directory.name}", flush=True)
                now = through + sum(task.progress for future, task in going.items() if future.running())
                bar.set_postfix_str(f"{len(tasks) - len(going)} of {len(tasks)} runs", refresh=False)
                bar.update(now - bar.n)
        except BaseException:  # also Ctrl-C: running processes save a checkpoint, waiting tasks are not started
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            bar.close()
    return failed


def train(task: Task, stop: Event, episodes: int) -> dict[str, Any]:
    """Train one run, or go on with it, and score it; returns its score and the commit that it was trained with.

    Raises:
        UsageError: its settings are invalid.
        FailedError: it failed, or was told to `stop`.
    """
    directory = task.directory
    if begun_with(directory) == commit() and (directory / "checkpoint.pt").exists():
        where = ["--resume", directory]
    else:
        shutil.rmtree(directory, ignore_errors=True)
        where = ["--env", task.env, "--seed", task.seed, "--total-timesteps", task.timesteps, *shlex.split(task.flags)]
        where += ["--run-dir", directory, "--env-kwargs", task.env_kwargs]
    script = f"a2c_algorithm_{task.script}_update.py"
    call(stop, directory, script, *where, "--img-dir", directory, "--quiet")
    seed = EVALUATION_SEED + task.seed
    score = call(stop, directory, "evaluate.py", directory, "--episodes", episodes, "--seed", seed)
    return json.loads(score.splitlines()[-1]) | {"commit": begun_with(directory)}


def grid(timesteps: int) -> np.ndarray:
    """The timesteps of the points of a learning curve, (POINTS,)."""
    return np.arange(1, POINTS + 1) * timesteps // POINTS


def learning_curve(task: Task) -> list[tuple[int, float, float]]:
    """Timestep, seconds and training return, nan before there is one, of the points of a run's learning curve."""
    with (task.directory / "episodes.csv").open(newline="") as file:
        episodes = [(int(row["timestep"]), float(row["return"])) for row in csv.DictReader(file)]
    with (task.directory / "updates.csv").open(newline="") as file:
        times = np.array([(0, 0.0), *((int(row["timestep"]), float(row["wall_time"])) for row in csv.DictReader(file))])
    ends, returns = np.array(episodes).reshape(-1, 2).T
    points = []
    for timestep, seconds in zip(grid(task.timesteps), np.interp(grid(task.timesteps), *times.T), strict=True):
        through = np.searchsorted(ends, timestep, side="right")
        value = returns[max(through - WINDOW, 0) : through].mean() if through else np.nan
        points.append((int(timestep), float(seconds), float(value)))
    return points


def begun_with(directory: Path) -> str | None:
    """The commit that a run was begun with, None if there is no such run."""
    with contextlib.suppress(UsageError):
        return load_config(directory)["commit"]
    return None


def call(stop: Event, directory: Path, script: str, *args: object) -> str:
    """Run a script of the project, and return what it prints; terminates it when told to stop."""
    command = [sys.executable, str(PROJECT / script), *map(str, args)]
    # A session of its own: Ctrl-C, which the terminal sends to all, is for the parent to pass on.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        while True:
            if stop.is_set():
                process.terminate()
            try:
                out, err = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                pass
    if process.returncode or stop.is_set():
        why = (err.strip().splitlines() or [f"{script} ended with exit status {process.returncode}"])[-1]
        if process.returncode == 2:
            raise UsageError(why.partition("error: ")[2] or why)
        raise FailedError(f"{directory}: {why}")
    return out


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file, none if it is not there; raises a `UsageError` if its columns are others."""
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is broken ({error}); put the file back as it was, or move it away") from error
    missing = [column for column in columns if column not in (reader.fieldnames or [])]
    if missing:
        raise UsageError(f"{path} has no column {missing[0]}; put the file back as it was, or move it away")
    broken = [i for i, row in enumerate(rows) if None in row.values() or None in row]
    if broken:
        raise UsageError(f"{path}, line {broken[0] + 2}, is broken; put the file back as it was, or move it away")
    return rows


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a CSV file, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue().encode())
