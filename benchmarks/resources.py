"""What training takes: memory, checkpoints, and the time of an update.

    python -m benchmarks.resources                   # a quarter of an hour; what results/ has is not measured again
    python -m benchmarks.resources --only memory
    python -m benchmarks.resources --table           # no measuring: print the tables, and draw img/cost.png

memory: resident megabytes of a long run of each script, over the timesteps. Linux only: it reads /proc.

checkpoint: the share of the training time that checkpoints take at the default interval. Settings are the defaults. A
row of the CSV is a checkpoint, the time that it took and the time that was trained since the one before. What comes
before the first, compiling among it, does not count.

cost: what an update of the epoch script costs as batch, number of environments and hidden layers grow. Every
measurement is a run on Pendulum-v0 with one setting changed, on one thread and not compiled, timed by its own log after
the first third; settings take turns, so that a slow minute of the machine falls on all of them.
"""

import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import tyro

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from benchmarks.measuring import PROJECT, Config, Measurements, measure_and_show, print_table, rate, training
from training.cli import keep_memory
from training.run import Run

MEMORY = Measurements("memory", "script", "timestep", "megabytes")
LONG = {"epoch": 10_000_000, "step": 1_000_000}
"""Timesteps of the runs whose memory is measured."""
CHECKPOINT = Measurements("checkpoint", "script", "env", "checkpoint_seconds", "training_seconds")
RUNS: list[tuple[Any, str, int]] = [
    (epoch, "Pendulum-v0", 480_000),
    (epoch, "HalfCheetah-v4", 240_000),
    (step, "Pendulum-v0", 240_000),
    (step, "HalfCheetah-v4", 120_000),
]
COST = Measurements("cost", "flag", "value", "round", "milliseconds_per_timestep")


class Setting(NamedTuple):
    """Its values, its label in the figure, and the updates of a run."""

    values: list[int]
    label: str
    updates: int


SETTINGS = {
    "sample-size": Setting([128, 512, 2048, 8192], "timesteps in a batch (16 environments)", 40),
    "num-envs": Setting([4, 16, 64, 256], "environments (batches of 512 timesteps)", 100),
    "hidden-sizes": Setting([16, 64, 256, 1024], "units in each of two hidden layers", 40),
}


def memory(script: str, timesteps: int, *flags: str, interval: float = 5.0) -> list[tuple[int, float]]:
    """Timesteps and resident megabytes, every `interval` seconds; what the system counts as its peak comes last."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = training(script, folder, "--quiet", "--total-timesteps", timesteps, *flags)
        samples: list[tuple[int, float]] = []
        process = subprocess.Popen([sys.executable, *map(str, arguments)])
        peak = 0.0
        while process.poll() is None:
            time.sleep(interval)
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            if "VmRSS" not in status:  # it has just ended
                break
            log = Path(folder) / "run" / "updates.csv"
            rows = log.read_text().splitlines() if log.exists() else []
            done = int(rows[-1].split(",")[0]) if len(rows) > 1 else 0
            samples.append((done, int(status["VmRSS"].split()[0]) / 1024))
            peak = int(status["VmHWM"].split()[0]) / 1024
        if process.wait():
            sys.exit(f"the {script} update failed")
    return [*samples, (timesteps, peak)]


def measure_memory() -> None:
    for script, timesteps in LONG.items():
        row = {"script": script}
        if not MEMORY.rows(**row):
            samples = memory(script, timesteps)
            MEMORY.add(*(row | {"timestep": done, "megabytes": round(mb, 1)} for done, mb in samples))


def print_memory() -> None:
    rows = []
    for script in LONG:
        if found := MEMORY.rows(script=script):
            *samples, (timesteps, peak) = [(int(row["timestep"]), float(row["megabytes"])) for row in found]
            settled = [megabytes for done, megabytes in samples if done > timesteps / 5]
            rows.append(f"{script} update | {timesteps:,} | {settled[0]:.0f} | {settled[-1]:.0f} | {peak:.0f}")
    print_table("script | timesteps | MB at a fifth of them | MB at the end | MB at most", rows)


def checkpoints(script: Any, env: str, timesteps: int) -> list[tuple[float, float]]:
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


def measure_checkpoint() -> None:
    torch.set_num_threads(1)
    keep_memory()
    for script, env, timesteps in RUNS:
        run = {"script": script.Config.script, "env": env}
        if not CHECKPOINT.rows(**run):
            times = checkpoints(script, env, timesteps)
            CHECKPOINT.add(
                *(run | {"checkpoint_seconds": round(s, 5), "training_seconds": round(t, 3)} for s, t in times)
            )


def print_checkpoint() -> None:
    rows = []
    for script, env, _ in RUNS:
        if found := CHECKPOINT.rows(script=script.Config.script, env=env):
            saving, training = ([float(row[f"{what}_seconds"]) for row in found] for what in ("checkpoint", "training"))
            share = sum(saving) / (sum(saving) + sum(training))
            rows.append(f"{script.Config.script} update | {env} | {1000 * median(saving):.1f} | {share:.1%}")
    print_table("script | environment | ms for a checkpoint, median | share of the training time", rows)


def batch(flag: str, value: int) -> int:
    """Timesteps in a batch."""
    return value if flag == "sample-size" else 512


def measure_cost() -> None:
    for r in range(3):
        for flag, setting in SETTINGS.items():
            for value in setting.values:
                row = {"flag": flag, "value": value, "round": r}
                if not COST.rows(**row):
                    values = [value] * (2 if flag == "hidden-sizes" else 1)
                    timesteps = setting.updates * batch(flag, value)
                    speed = rate("epoch", f"--{flag}", *values, "--no-compile", "--total-timesteps", timesteps)
                    COST.add(row | {"milliseconds_per_timestep": f"{1000 / speed:.6f}"})


def draw_cost() -> None:
    """Medians, and a line of what linear growth from the first one would be, as img/cost.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (flag, (values, label, _)) in zip(figure.subplots(1, 3), SETTINGS.items(), strict=True):
        costs = []
        for value in values:
            measured = [cost * batch(flag, value) for cost in COST.by_round(flag=flag, value=value).values()]
            axes.scatter([value] * len(measured), measured, s=8, color="0.6")
            costs.append(median(measured))
        axes.plot(values, costs, marker="o", color="#0072B2", label="measured, median")
        axes.plot(values, [costs[0] * v / values[0] for v in values], ls="--", color="#D55E00", label="linear")
        axes.set(xscale="log", yscale="log", xlabel=label, xticks=values, xticklabels=map(str, values))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        print(f"{flag}: " + ", ".join(f"{v}: {c:.1f} ms" for v, c in zip(values, costs, strict=True)))
        if flag == "sample-size":
            axes.set_ylabel("milliseconds for a batch")
            axes.legend()
    figure.suptitle("Epoch update on Pendulum-v0: collecting a batch and learning from it, one thread")
    (PROJECT / "img").mkdir(exist_ok=True)
    figure.savefig(PROJECT / "img" / "cost.png", dpi=100)


BENCHMARKS = {
    "memory": (measure_memory, print_memory),
    "checkpoint": (measure_checkpoint, print_checkpoint),
    "cost": (measure_cost, draw_cost),
}


if __name__ == "__main__":
    measure_and_show(tyro.cli(Config, description=__doc__), BENCHMARKS)
