"""What training takes: memory, checkpoints, and the time of an update.

    python -m benchmarks.resources                   # a quarter of an hour; what results/ has is not measured again
    python -m benchmarks.resources --only memory
    python -m benchmarks.resources --table           # no measuring: print the tables, and draw img/cost.png

memory: resident megabytes of a long run of each script, over the timesteps. Linux only: it reads /proc.

checkpoint: the share of the training time that checkpoints take at the default interval. Settings are the defaults. A
row of the CSV is a checkpoint, the time that it took and the time that was trained since the one before. What comes
before the first, compiling among it, does not count.

cost: what a batch of the epoch script costs as batch, number of environments and hidden layers grow. Every
measurement is a run on Pendulum-v0 with one setting changed, on one thread, timed by its own log after the first third;
settings take turns, so that a slow minute of the machine falls on all of them. A product of two large matrices is timed
between them: at its speed, which is the most that a core reaches, the networks' arithmetic would take the least time.
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
COST = Measurements("cost", "what", "size", "round", "milliseconds")
BATCH = epoch.Config.sample_size
STEPS = BATCH // epoch.Config.num_envs
"""Timesteps of each environment in a batch."""
OBSERVATION = 3
"""Entries of an observation of Pendulum-v0."""
CRITIC_UPDATES = 10
"""Gradient steps of the critic per batch, the default without images."""
PRODUCT, ROWS = "matrix product", 2_000


class Setting(NamedTuple):
    """Its values, and its label in the figure."""

    values: list[int]
    label: str


SETTINGS = {
    "sample-size": Setting([128, 512, 2048, 8192], "timesteps in a batch (16 environments)"),
    "num-envs": Setting([4, 16, 64, 256], "environments (8 timesteps of each in a batch)"),
    "hidden-sizes": Setting([16, 64, 256, 1024], "units in each of two hidden layers"),
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
    return {"sample-size": value, "num-envs": STEPS * value, "hidden-sizes": BATCH}[flag]


def arithmetic(units: int) -> int:
    """Floating-point operations for a timestep in the products of weights with inputs, and their gradients.

    The actor acts on an observation, and sees it once more after its step; the critic values it and the next one. Each
    gradient step of either takes a forward pass and the gradients of the weights and of the inputs, which the first
    layer does not need.
    """
    first, others = OBSERVATION * units, units * units + units
    gradient_steps = 1 + CRITIC_UPDATES
    return 2 * ((4 + 2 * gradient_steps) * first + (4 + 3 * gradient_steps) * others)


def matrix_product() -> float:
    """Milliseconds for the product of two matrices of ROWS rows and columns, the least of ten."""
    torch.set_num_threads(1)
    a, b, times = torch.randn(ROWS, ROWS), torch.randn(ROWS, ROWS), []
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def measure_cost() -> None:
    for r in range(3):
        row = {"what": PRODUCT, "size": ROWS, "round": r}
        if not COST.rows(**row):
            COST.add(row | {"milliseconds": f"{matrix_product():.6g}"})
        for flag, setting in SETTINGS.items():
            for value in setting.values:
                row = {"what": flag, "size": value, "round": r}
                if not COST.rows(**row):
                    sizes = [value, value] if flag == "hidden-sizes" else [value]
                    flags = ["--sample-size", batch(flag, value), "--total-timesteps", epoch.COMPILE_FROM, "--quiet"]
                    speed = rate("epoch", *flags, f"--{flag}", *sizes)  # of a flag given twice, the last one counts
                    COST.add(row | {"milliseconds": f"{1000 * batch(flag, value) / speed:.6g}"})


def draw_cost() -> None:
    """Medians, what linear growth from the first one would be, and the least for the arithmetic, as img/cost.png."""
    from matplotlib.figure import Figure

    if not COST.rows():
        return
    peak = 2 * ROWS**3 / median(COST.by_round(what=PRODUCT, size=ROWS).values())  # operations in a millisecond
    print(f"{PRODUCT}: {peak / 1e6:.0f} GFLOP/s")
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (flag, (values, label)) in zip(figure.subplots(1, 3), SETTINGS.items(), strict=True):
        measured = [list(COST.by_round(what=flag, size=value).values()) for value in values]
        costs = [median(times) for times in measured]
        units = values if flag == "hidden-sizes" else [epoch.Config.hidden_sizes[0]] * len(values)
        least = [arithmetic(u) * batch(flag, v) / peak for u, v in zip(units, values, strict=True)]
        for value, times in zip(values, measured, strict=True):
            axes.scatter([value] * len(times), times, s=8, color="0.6")
        axes.plot(values, costs, marker="o", color="#0072B2", label="measured, median")
        axes.plot(values, [costs[0] * v / values[0] for v in values], ls="--", color="#D55E00", label="linear growth")
        axes.plot(values, least, ls=":", color="black", label="arithmetic alone")
        axes.set(xscale="log", yscale="log", xlabel=label, xticks=values, xticklabels=map(str, values))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        cells = zip(values, costs, least, strict=True)
        print(f"{flag}: " + ", ".join(f"{v}: {c:.2f} ms ({f / c:.0%})" for v, c, f in cells))
        if flag == "sample-size":
            axes.set_ylabel("milliseconds for a batch")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
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
