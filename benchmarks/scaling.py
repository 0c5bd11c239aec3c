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
import time
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import numpy as np
import torch
import tyro
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
import environments
from benchmarks.measuring import PROJECT, Measurements, print_table, python, rate
from training.ranks import Ranks

SCALING = Measurements("scaling", "what", "size", "round", "value")
FIGURE = PROJECT / "img" / "scaling.png"
ENV, TIMESTEPS = "HalfCheetah-v4", 600_000
RANKS = (1, 2)
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
SIZES = (4, 1_000, 10_000, 100_000, 1_000_000)
"""Bytes of the all-reduces that are timed."""
MACHINES = (1, 8, 64, 1_000)
LATENCY, BANDWIDTH = 30e-6, 10e9 / 8
"""Assumed of the network: seconds, and bytes a second: 10 Gbit/s Ethernet in one data centre."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure how the epoch update scales with ranks, and print the tables of the measurements and of the model."""

    table: bool = False
    """Measure nothing: print the tables of what is there, and draw the figure."""
    all_reduce: bool = False
    """Time all-reduces, as one of the ranks that torchrun started (what the benchmark starts)."""


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


def measure() -> None:
    """Take what is not measured yet."""
    for r in range(3):
        for ranks in RANKS:
            row = {"what": "train", "size": ranks, "round": r}
            if not SCALING.rows(**row):
                flags = ("--env", ENV, "--total-timesteps", TIMESTEPS, "--quiet")
                SCALING.add(row | {"value": f"{rate('epoch', *flags, launcher=[*TORCHRUN, ranks]):.6g}"})
        row = {"what": "all-reduce", "round": r}
        if not SCALING.rows(**row):
            found = python(*TORCHRUN, 2, "-m", "benchmarks.scaling", "--all-reduce")
            SCALING.add(*(row | {"size": size, "value": f"{float(seconds):.6g}"} for size, seconds in found))


def medians(what: str) -> dict[int, float]:
    """Over the rounds, by size."""
    sizes = sorted({int(row["size"]) for row in SCALING.rows(what=what)})
    return {size: median(SCALING.by_round(what=what, size=size).values()) for size in sizes}


class Counting(Ranks):
    """A single process that records how many bytes each collective operation would have sent."""

    def __init__(self) -> None:
        self.sent: list[int] = []

    def all_reduce_mean(self, tensor: torch.Tensor) -> torch.Tensor:
        self.sent.append(tensor.nbytes)
        return tensor

    all_gather = all_reduce_mean


@cache
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


def print_tables() -> None:
    """The tables of docs/results.md: what was measured here, and what the model says."""
    speeds, times, told = medians("train"), medians("all-reduce"), communicated()
    print_table(
        "ranks on this machine | timesteps/s, median | one rank = 1",
        [f"{ranks} | {speed:,.0f} | {speed / speeds[1]:.2f}" for ranks, speed in speeds.items()],
    )
    print()
    print_table(
        "bytes of an all-reduce, two ranks, loopback | microseconds, median",
        [f"{size:,} | {seconds * 1e6:,.0f}" for size, seconds in times.items()],
    )
    print()
    print_table("an update of the defaults |", [f"all-reduces | {len(told)}", f"bytes in all | {sum(told):,}"])
    print()
    rows = []
    for machines in MACHINES:
        modeled = [model(machines, shape) for shape in ("ring", "tree")]
        cells = [f"{speed:,.0f} | {speed / machines / speeds[1]:.0%}" for speed in modeled]
        rows.append(f"{machines:,} | {' | '.join(cells)}")
    print_table("machines, by the model | ring: timesteps/s | of the ideal | tree: timesteps/s | of the ideal", rows)


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
        measure()
    print_tables()
    draw()


if __name__ == "__main__":
    main(tyro.cli(Config))
