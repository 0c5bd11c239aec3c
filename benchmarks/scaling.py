"""Timesteps a second of each way to use several cores, and a model of what more machines would do.

    python -m benchmarks.scaling                    # some 40 minutes, into results/backends.csv and results/scaling.csv
    python -m benchmarks.scaling --only backends    # one of them
    python -m benchmarks.scaling --table            # no measuring: print the tables, draw img/scaling.png

Measured: environments that take so long a step, stepped one after the other (sync), in processes (async), by EnvPool,
or by two ranks; and how long an all-reduce takes between two ranks on loopback. Everything is measured in turn, and the
median of the rounds taken.

The model is of machines that each step `num_envs` environments of their own, so that the batch grows with them:

    seconds of an update = seconds of one machine alone + for each all-reduce of B bytes over M machines
        ring:  2 (M - 1) * latency + 2 (M - 1) / M * B / bandwidth       what gloo does
        tree:  2 log2(M) * latency + 2 B / bandwidth                     what NCCL does for messages so small

Its assumptions: all machines are as fast as this one and none is late; nothing is sent while something is computed;
the network between them has the latency and the bandwidth below, plus what an all-reduce takes on loopback beyond
both, which is calling and copying.
"""

import itertools
import math
import time
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
import environments
from benchmarks import measuring
from benchmarks.measuring import PROJECT, Measurements, measure_and_show, print_table, python, rate
from networks import ObservationLayout
from training.ranks import Ranks

BACKENDS = Measurements("backends", "environment", "environments", "backend", "round", "timesteps_per_second")
SCALING = Measurements("scaling", "what", "size", "round", "value")
FIGURE = PROJECT / "img" / "scaling.png"
ENV, TIMESTEPS = "HalfCheetah-v4", 600_000
RANKS = (1, 2)
ROUNDS = 3
SLOW = "--env-fn benchmarks.scaling:Slow --eval-episodes 1 --target-return 0 --eval-interval"
CASES = {
    "waits 5 ms": (8, 100_000, [*SLOW.split(), "4096", "--env-kwargs", '{"ms": 5}']),
    "waits 1 ms": (8, 100_000, [*SLOW.split(), "12288", "--env-kwargs", '{"ms": 1}']),
    "computes for 1 ms": (8, 100_000, [*SLOW.split(), "12288", "--env-kwargs", '{"ms": 1, "busy": true}']),
    "HalfCheetah-v4": (16, 200_000, ["--env", "HalfCheetah-v4"]),
    "Humanoid-v4": (64, 100_000, ["--env", "Humanoid-v4"]),
}
"""Environments: how many are stepped together, timesteps, and flags.

The slow ones are started for as many timesteps as a training takes, so that they are compiled as a training is, and
are ended by the first evaluation, of which the return is 0.
"""
BACKEND_FLAGS = {"sync": "sync", "async": "async", "EnvPool": "envpool", "two ranks": "sync"}
"""What is compared, and its --vector-backend."""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
SIZES = (4, 1_000, 10_000, 100_000, 1_000_000)
"""Bytes of the all-reduces that are timed."""
MACHINES = (1, 8, 64, 1_000)
LATENCY, BANDWIDTH = 30e-6, 10e9 / 8
"""Assumed of the network: seconds, and bytes a second: 10 Gbit/s Ethernet in one data center."""


@dataclass(frozen=True, kw_only=True)
class Config(measuring.Config):
    """Measure how the epoch update scales with cores, and print the tables of the measurements and of the model."""

    all_reduce: bool = False
    """Time all-reduces, as one of the ranks that torchrun started (what the benchmark starts)."""


class Slow(gym.Env):
    """An environment of which a step takes `ms` milliseconds, in which it waits, as for a robot, or computes."""

    def __init__(self, ms: float, busy: bool = False) -> None:
        self.seconds, self.busy = ms / 1000, busy
        self.observation_space, self.action_space = spaces.Box(-1, 1, (17,)), spaces.Box(-1, 1, (6,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 17).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        end = time.perf_counter() + self.seconds
        if not self.busy:
            time.sleep(self.seconds)
        while time.perf_counter() < end:
            pass
        self.steps += 1
        return self.np_random.uniform(-1, 1, 17).astype(np.float32), 0.0, False, self.steps == 100, {}


def measure_backends() -> None:
    """Take what is not measured yet: each backend with each environment that it has."""
    for r, (name, (num_envs, timesteps, flags)) in itertools.product(range(ROUNDS), CASES.items()):
        for backend, flag in BACKEND_FLAGS.items():
            row = {"environment": name, "environments": num_envs, "backend": backend, "round": r}
            if BACKENDS.rows(**row) or (backend == "EnvPool" and name not in gym.registry):
                continue
            sizes = ["--num-envs", num_envs, "--sample-size", 8 * num_envs, "--total-timesteps", timesteps]
            launcher = [*TORCHRUN, 2] if backend == "two ranks" else ()
            value = rate("epoch", *flags, *sizes, "--vector-backend", flag, "--quiet", launcher=launcher)
            BACKENDS.add(row | {"timesteps_per_second": f"{value:.6g}"})


def print_backends() -> None:
    """The table of backends: timesteps a second, and against sync in the same round."""
    rows = []
    for name, (num_envs, *_) in CASES.items():
        cells = [name, str(num_envs)]
        sync = BACKENDS.by_round(environment=name, backend="sync")
        if not sync:
            continue
        for backend in BACKEND_FLAGS:
            found = BACKENDS.by_round(environment=name, backend=backend)
            ratios = [found[r] / sync[r] for r in found if r in sync]
            cells.append(f"{median(found.values()):,.0f} ({median(ratios):.2f})" if ratios else "")
        rows.append(" | ".join(cells))
    print_table(f"a step of the environment | environments | {' | '.join(BACKEND_FLAGS)}", rows)


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
    for r in range(ROUNDS):
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
    learner = epoch.A2C(config, ObservationLayout(inputs), environments.ActionMap(env.action_space), ranks)
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


def show() -> None:
    """Print the tables of ranks and machines, and draw the figure."""
    print_tables()
    draw()


def main(config: Config) -> None:
    if config.all_reduce:
        time_all_reduces()
        return
    benchmarks = {"backends": (measure_backends, print_backends), "ranks": (measure, show)}
    measure_and_show(config, benchmarks)


if __name__ == "__main__":
    main(tyro.cli(Config))
