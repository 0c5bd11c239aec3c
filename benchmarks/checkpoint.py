"""What checkpoints cost: the share of the training time that they take at the default interval.

    python -m benchmarks.checkpoint                  # some two minutes, into results/checkpoint.csv
    python -m benchmarks.checkpoint --table          # no measuring: print the table of what is there

Settings are the defaults. A row of the CSV is a checkpoint, the time that it took and the time that was trained since
the one before. What comes before the first, compiling among it, does not count.
"""

import csv
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
import tyro

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from training.cli import keep_memory
from training.run import Run

PROJECT = Path(__file__).parent.parent

RESULTS = PROJECT / "results" / "checkpoint.csv"
RUNS: list[tuple[Any, str, int]] = [
    (epoch, "Pendulum-v0", 480_000),
    (epoch, "HalfCheetah-v4", 240_000),
    (step, "Pendulum-v0", 240_000),
    (step, "HalfCheetah-v4", 120_000),
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure what checkpoints cost."""

    table: bool = False
    """Measure nothing: print the table of what is there."""


def measure(script: Any, env: str, timesteps: int) -> list[tuple[float, float]]:
    """Seconds that each checkpoint of a run took, and seconds trained since the one before."""
    times: list[tuple[float, float]] = []
    save = Run.save

    def timed(run: Run, **loop: Any) -> None:
        begin = time.perf_counter()
        save(run, **loop)
        times.append((begin, time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder, patch.object(Run, "save", timed):
        settings = {"run_dir": Path(folder, "run"), "img_dir": Path(folder), "quiet": True}
        script.train(script.Config(env=env, total_timesteps=timesteps, **settings))
    return [(end - begin, begin - before) for (_, before), (begin, end) in pairwise(times)]


def print_table() -> None:
    print("| script | environment | ms for a checkpoint, median | share of the training time |\n|---|---|---|---|")
    with RESULTS.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for script, env, _ in RUNS:
        name = script.Config.script
        mine = [row for row in rows if (row["script"], row["env"]) == (name, env)]
        saving, training = ([float(row[f"{what}_seconds"]) for row in mine] for what in ("checkpoint", "training"))
        share = sum(saving) / (sum(saving) + sum(training))
        print(f"| {name} update | {env} | {1000 * median(saving):.1f} | {share:.1%} |")


def main(config: Config) -> None:
    torch.set_num_threads(1)
    keep_memory()
    if not config.table:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["script", "env", "checkpoint_seconds", "training_seconds"])
            for script, env, timesteps in RUNS:
                for saving, training in measure(script, env, timesteps):
                    writer.writerow([script.Config.script, env, round(saving, 5), round(training, 3)])
    print_table()


if __name__ == "__main__":
    main(tyro.cli(Config))
