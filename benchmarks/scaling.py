"""Timesteps a second against ranks on this machine, and a model of what more machines would do.

    python -m benchmarks.scaling              # some ten minutes, into results/scaling.csv
    python -m benchmarks.scaling --table      # no measuring: print the tables of what is there, draw img/scaling.png

Measured: the epoch update's defaults on HalfCheetah-v4, by one rank and by two, and how long an all-reduce takes
between two ranks on loopback. Everything is measured in turn, and the median of the rounds taken.

The model is of machines that each step `num_envs` environments of their own, so that the batch grows with them:

    seconds of an update = seconds of one machine alone + for each all-reduce of B bytes over M machines
        ring:  2 (M - 1) * latency + 2 (M - 1) / M * B / bandwidth       what gloo does
        tree:  2 log2(M) * latency + 2 B / bandwidth                     what NCCL does for messages so small

Its assumptions: all machines are as fast as this one and none is late; nothing is sent while something is computed;
the network between them has the latency and the bandwidth below, plus what an all-reduce takes on loopback beyond
both, which is calling and copying.
"""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
import environments
from benchmarks.throughput import rate
from training.experiments import read_csv, write_csv
from training.ranks import Ranks

PROJECT = Path(__file__).parent.parent

RESULTS = PROJECT / "results" / "scaling.csv"
FIGURE = PROJECT / "img" / "scaling.png"
COLUMNS = ["what", "size", "round", "value"]
ENV, TIMESTEPS = "HalfCheetah-v4", 600_000
RANKS = (1, 2)
SIZES = (4, 1_000, 10_000, 100_000, 1_000_000)
"""Bytes of the all-reduces that are timed."""
MACHINES = (1, 8, 64, 1_000)
LATENCY, BANDWIDTH = 30e-6, 10e9 / 8
"""Assumed of the network: seconds, and bytes a second: 10 Gbit/s Ethernet in one data centre."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure how the epoch update scales with ranks, and print the tables of the measurements and of the model."""

    rounds: int = 3
    """Measurements of each."""
    table: bool = False
    """Measure nothing: print the tables of what is there, and draw the figure."""
    all_reduce: bool = False
    """Time all-reduces, as one of the ranks that torchrun started (what the benchmark starts)."""


def torchrun(ranks: int, *command: object) -> str:
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, *command]
    return subprocess.run([*map(str, words)], check=True, capture_output=True, text=True, cwd=PROJECT).stdout


def train(ranks: int) -> float:
    """Timesteps a second of a training."""
    with tempfile.TemporaryDirectory() as folder:
        paths = ["--run-dir", f"{folder}/run", "--img-dir", folder, "--quiet"]
        script = PROJECT / "a2c_algorithm_epoch_update.py"
        torchrun(ranks, script, "--env", ENV, "--total-timesteps", TIMESTEPS, *paths)
        return rate(Path(folder) / "run")


def time_all_reduces() -> None:
    """Print the median seconds of an all-reduce of each of SIZES, on rank 0."""
    torch.set_num_threads(1)
    ranks = Ranks.started("cpu")
    for size in SIZES:
        tensor, times = torch.ones(size // 4), []
        for _ in range(300):
            start = time.perf_counter()
            ranks.all_reduce_mean(tensor)
            times.append(time.perf_counter() - start)
        if not ranks.rank:
            print(f"result {size} {median(times)}", flush=True)


def measure(rounds: int) -> None:
    """Take what is not measured yet."""
    done = {(row["what"], row["round"]) for row in rows() if row["what"] == "all-reduce"}
    done |= {(row["size"], row["round"]) for row in rows() if row["what"] == "train"}
    for r in map(str, range(rounds)):
        for ranks in map(str, RANKS):
            if (ranks, r) not in done:
                keep("train", {ranks: train(int(ranks))}, r)
        if ("all-reduce", r) not in done:
            lines = torchrun(2, "-m", "benchmarks.scaling", "--all-reduce").splitlines()
            found = [line.split()[1:] for line in lines if line.startswith("result")]
            keep("all-reduce", {size: float(seconds) for size, seconds in found}, r)


def keep(what: str, values: Mapping[str, float], r: str) -> None:
    """Add measurements to the CSV."""
    new = [(what, size, r, f"{value:.6g}") for size, value in values.items()]
    write_csv(RESULTS, COLUMNS, [*rows(), *(dict(zip(COLUMNS, row, strict=True)) for row in new)])
    print(what, dict(values), flush=True)


def rows() -> list[dict[str, str]]:
    """The measurements that are done."""
    return read_csv(RESULTS, COLUMNS)


def medians(what: str) -> dict[int, float]:
    """Over the rounds, by size."""
    sizes = sorted({int(row["size"]) for row in rows() if row["what"] == what})
    return {
        size: median(float(row["value"]) for row in rows() if (row["what"], int(row["size"])) == (what, size))
        for size in sizes
    }


class Counting(Ranks):
    """A single process that records how many bytes each collective operation would have sent."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def all_reduce_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sent.append(tensor.nbytes)
        return tensor

    all_gather = all_reduce_mean


def communicated() -> list[int]:
    """Bytes of each all-reduce of one update of the defaults."""
    config = epoch.Config(env=ENV, compile=False)
    env = environments.make_env(ENV)
    ranks: Any = Counting()
    inputs, outputs = spaces.flatdim(env.observation_space), spaces.flatdim(env.action_space)
    learner = epoch.A2C(config, inputs, environments.ActionMap(env.action_space), ranks)
    size = config.sample_size // config.num_envs, config.num_envs
    observations, actions, zeros = torch.randn(*size, inputs), torch.randn(*size, outputs), torch.zeros(size)
    learner.update(epoch.Batch(observations, actions, zeros, observations, zeros, zeros), 1.0)
    return ranks.sent


def seconds_to_agree(sent: list[int], machines: int, shape: str) -> float:
    """What the all-reduces of an update take over so many machines, by the model above."""
    if machines == 1:
        return 0.0
    hops = 2 * (machines - 1) if shape == "ring" else 2 * math.log2(machines)
    share = (machines - 1) / machines if shape == "ring" else 1.0
    call = min(medians("all-reduce").values())
    return sum(call + hops * LATENCY + 2 * share * size / BANDWIDTH for size in sent)


def model(machines: int, shape: str) -> float:
    """Timesteps a second of so many machines."""
    sample_size = epoch.Config().sample_size
    alone = sample_size / medians("train")[1]
    return machines * sample_size / (alone + seconds_to_agree(communicated(), machines, shape))


def print_table() -> None:
    """The tables of docs/results.md: what was measured here, and what the model says."""
    speeds, times, told = medians("train"), medians("all-reduce"), communicated()
    print("| ranks on this machine | timesteps/s, median | one rank = 1 |\n|---|---|---|")
    for ranks, speed in speeds.items():
        print(f"| {ranks} | {speed:,.0f} | {speed / speeds[1]:.2f} |")
    print("\n| bytes of an all-reduce, two ranks, loopback | microseconds, median |\n|---|---|")
    for size, seconds in times.items():
        print(f"| {size:,} | {seconds * 1e6:,.0f} |")
    print(
        f"\n| an update of the defaults | |\n|---|---|\n| all-reduces | {len(told)} |\n| bytes in all | {sum(told):,} |"
    )
    print("\n| machines, by the model | ring: timesteps/s | of the ideal | tree: timesteps/s | of the ideal |")
    print("|---|---|---|---|---|")
    for machines in MACHINES:
        cells = [
            f"{model(machines, s):,.0f} | {model(machines, s) / machines / speeds[1]:.0%}" for s in ("ring", "tree")
        ]
        print(f"| {machines:,} | {' | '.join(cells)} |")


def draw() -> None:
    """Draw the measurements and the model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, speeds = figure.subplots(), medians("train")
    machines = np.unique(np.logspace(0, 3, 40).astype(int))
    axes.plot(machines, machines * speeds[1], color="0.6", linestyle=":", label="ideal")
    for shape, color, dashes in (("tree", "#0072B2", "--"), ("ring", "#D55E00", "-")):
        axes.plot(machines, [model(m, shape) for m in machines], color, linestyle=dashes, label=f"model, {shape}")
    axes.plot(*zip(*speeds.items(), strict=True), "ko", label="ranks of one machine, measured")
    axes.set(xscale="log", yscale="log", xlabel="machines", ylabel="timesteps a second")
    axes.set_title(
        f"Epoch update, {ENV}: {epoch.Config().num_envs} environments a machine;\nassumed: {LATENCY * 1e6:.0f} us and"
        f" {BANDWIDTH * 8 / 1e9:.0f} Gbit/s between machines, none late, no overlap",
        fontsize=10,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=100)


def main(config: Config) -> None:
    if config.all_reduce:
        time_all_reduces()
        return
    if not config.table:
        measure(config.rounds)
    print_table()
    draw()


if __name__ == "__main__":
    main(tyro.cli(Config))
