"""Train and score both scripts, ten seeds each: the README's tables of returns.

    python -m benchmarks.returns                   # all of it; what results/returns.csv already has is not done again
    python -m benchmarks.returns --only step       # one script
    python -m benchmarks.returns --only "no traces"
    python -m benchmarks.returns --table           # no training: print the tables of what is there

A row of `results/returns.csv` is a run: 100 evaluation episodes of the final policy, acting by its mode, on
environments that training never saw. `variant` says which settings were not the defaults.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import tyro

from training.experiments import Task, read_csv, train_all, write_csv

PROJECT = Path(__file__).parent.parent

RESULTS = PROJECT / "results" / "returns.csv"
COLUMNS = ["script", "env", "timesteps", "variant", "seed"]
COLUMNS += ["mean_return", "std_return", "min_return", "seconds", "commit"]
VARIANTS = {
    "defaults": "",
    "no traces": "--trace-lambda 0",
    "no observation normalization": "--no-obs-norm",
    "no reward scaling": "--no-reward-norm",
    "no layer normalization": "--no-layer-norm",
    "constant learning rates": "--no-anneal-lr",
    "unlimited mean": "--mean-limit 0",
    "Adam": "--optimizer adam",
    "ObGD": "--optimizer obgd",
    "sparse initialization": "--init sparse",
    "deviation of the state": "--state-std",
    "textbook": "--textbook",
    # Elsayed et al. 2024, table of settings and published code; on MuJoCo also `benchmarks/timed.py`.
    "Stream AC": "--optimizer obgd --hidden-sizes 128 128 --init sparse --mean-limit 0 --state-std --no-anneal-lr"
    " --ent-coef 0.01",
}


class Experiment(NamedTuple):
    script: str
    env: str
    timesteps: int
    variant: str = "defaults"


INGREDIENTS = {"step": {"Pendulum-v0": 100_000, "MountainCar-v0": 200_000}, "epoch": {"Pendulum-v0": 100_000}}
"""Where they are taken away in turn, and for how many timesteps."""
EXPERIMENTS = [
    Experiment("epoch", "Pendulum-v0", 100_000),
    Experiment("epoch", "MountainCar-v0", 200_000),
    Experiment("epoch", "CartPole-v1", 60_000),
    Experiment("epoch", "Acrobot-v1", 100_000),
    Experiment("epoch", "Hopper-v4", 200_000),
    *(
        Experiment("epoch", "Pendulum-v0", 100_000, variant)
        for variant in ("no layer normalization", "sparse initialization", "deviation of the state")
    ),
    Experiment("step", "Pendulum-v0", 200_000),
    Experiment("step", "CartPole-v1", 100_000),
    Experiment("step", "Acrobot-v1", 200_000),
    Experiment("step", "HalfCheetah-v4", 1_000_000),
    Experiment("step", "benchmarks.timed:TimedHalfCheetah-v4", 1_000_000, "Stream AC"),
    *(
        Experiment("step", env, timesteps, variant)
        for env, timesteps in INGREDIENTS["step"].items()
        for variant in VARIANTS
        if env != "MountainCar-v0"
        or variant not in ("unlimited mean", "deviation of the state")  # its actions are choices
    ),
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train and score both scripts, and print the tables of returns."""

    seeds: int = 10
    """Seeds 0 to seeds - 1."""
    workers: int = 1
    """Trainings at once, of one thread each."""
    only: str = ""
    """Only experiments whose "script env variant" contains this."""
    table: bool = False
    """Train nothing: print the table of what is there."""


def print_tables(done: Sequence[Mapping[str, str]]) -> None:
    """The README's tables: of the defaults, of the step update's ingredients and of the epoch update's networks."""

    def scores(*experiment: object) -> list[float]:
        return sorted(float(row["mean_return"]) for row in done if key(row)[:-1] == experiment)

    print("| script | environment | timesteps | settings | mean | median | worst seed | all seeds |")
    print("|---|---|---|---|---|---|---|---|")
    for script, env, timesteps, variant in EXPERIMENTS:
        found = scores(script, env, timesteps, variant)
        if found and (variant == "defaults" or ":" in env):
            print(
                f"| {script} | {env.rpartition(':')[2]} | {timesteps:,} | {variant} | {mean(found):.1f}"
                f" | {median(found):.1f} | {found[0]:.1f} | {listed(found)} |"
            )
    for script, envs in INGREDIENTS.items():
        heads = " | ".join(f"{env}, {timesteps:,}: mean | all seeds" for env, timesteps in envs.items())
        print(f"\n| the {script} update with | flags | {heads} |")
        print("|---|---|" + "---|---|" * len(envs))
        for variant, flags in VARIANTS.items():
            found_in = [scores(script, env, timesteps, variant) for env, timesteps in envs.items()]
            if any(found_in):
                shown = "see `benchmarks/returns.py`" if variant == "Stream AC" else f"`{flags}`" if flags else ""
                cells = " | ".join(f"{mean(found):.1f} | {listed(found)}" if found else "- | -" for found in found_in)
                print(f"| {variant} | {shown} | {cells} |")


def listed(scores: Sequence[float]) -> str:
    """All seeds, the worst first."""
    return ", ".join(f"{score:.0f}" for score in scores)


def key(row: Mapping[str, str]) -> tuple[str, str, int, str, int]:
    """What a row is the result of: an experiment and a seed."""
    return row["script"], row["env"], int(row["timesteps"]), row["variant"], int(row["seed"])


def main(config: Config) -> None:
    done = read_csv(RESULTS, COLUMNS)
    there = {key(row) for row in done}
    chosen = [e for e in EXPERIMENTS if config.only in f"{e.script} {e.env} {e.variant}"]
    todo = {
        Task(e.script, e.env, e.timesteps, VARIANTS[e.variant], seed): e
        for seed in range(config.seeds)
        for e in chosen
        if (*e, seed) not in there
    }

    def keep(task: Task, score: dict[str, Any]) -> None:
        with (task.directory / "updates.csv").open(newline="") as file:
            *_, last = csv.DictReader(file)
        numbers = [round(score[name], 2) for name in ("mean_return", "std_return", "min_return")]
        values = [*todo[task], task.seed, *numbers, round(float(last["wall_time"]), 1), score["commit"]]
        done.append(dict(zip(COLUMNS, map(str, values), strict=True)))
        write_csv(RESULTS, COLUMNS, done)

    failed = 0 if config.table else train_all(list(todo), config.workers, keep)
    print_tables(done)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(tyro.cli(Config))
