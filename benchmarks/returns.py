"""Train and score both scripts, ten seeds each: the README's tables of returns.

    python benchmarks/returns.py                   # all of it; what results/returns.csv already has is not done again
    python benchmarks/returns.py --only step       # one script
    python benchmarks/returns.py --only "no traces"
    python benchmarks/returns.py --table           # no training: print the tables of what is there

A row of `results/returns.csv` is a run: 100 evaluation episodes of the final policy, acting by its mode, on
environments that training never saw. `variant` says which settings were not the defaults.
"""

import csv
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from threading import Lock
from typing import NamedTuple

import tyro

PROJECT = Path(__file__).parent.parent
RESULTS = PROJECT / "results" / "returns.csv"
COLUMNS = ["script", "env", "timesteps", "variant", "seed"]
COLUMNS += ["mean_return", "std_return", "min_return", "seconds", "commit"]
VARIANTS = {
    "defaults": "",
    "no traces": "--trace-lambda 0",
    "no observation normalisation": "--no-obs-norm",
    "no reward scaling": "--no-reward-norm",
    "no layer normalisation": "--no-layer-norm",
    "constant learning rates": "--no-anneal-lr",
    "unlimited mean": "--mean-limit 0",
    "Adam": "--optimizer adam",
    "ObGD": "--optimizer obgd",
    "sparse initialisation": "--init sparse",
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


EXPERIMENTS = [
    Experiment("epoch", "Pendulum-v0", 100_000),
    Experiment("epoch", "MountainCar-v0", 200_000),
    Experiment("epoch", "CartPole-v1", 60_000),
    Experiment("epoch", "Acrobot-v1", 100_000),
    Experiment("epoch", "Hopper-v4", 200_000),
    *(
        Experiment("epoch", "Pendulum-v0", 100_000, variant)
        for variant in ("no layer normalisation", "sparse initialisation", "deviation of the state")
    ),
    Experiment("step", "Pendulum-v0", 200_000),
    Experiment("step", "CartPole-v1", 100_000),
    Experiment("step", "Acrobot-v1", 200_000),
    Experiment("step", "HalfCheetah-v4", 1_000_000),
    Experiment("step", "benchmarks.timed:TimedHalfCheetah-v4", 1_000_000, "Stream AC"),
    *(
        Experiment("step", env, timesteps, variant)
        for env, timesteps in (("Pendulum-v0", 100_000), ("MountainCar-v0", 200_000))
        for variant in VARIANTS
        if env != "MountainCar-v0"
        or variant not in ("unlimited mean", "deviation of the state")  # its actions are choices
    ),
]
EPISODES = 100
EVALUATION_SEED = 1_000  # plus the run's: no environment that training, or another seed's evaluation, has played


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


def rows() -> list[dict[str, str]]:
    """The runs that are done."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def run(experiment: Experiment, seed: int) -> dict[str, object]:
    """Train one seed in a process of its own, score it in another, and return its row."""
    script, env, timesteps, variant = experiment
    with tempfile.TemporaryDirectory() as folder:
        train = [f"a2c_algorithm_{script}_update.py", "--env", env, "--seed", seed, "--total-timesteps", timesteps]
        train += VARIANTS[variant].split()
        start(*train, "--run-dir", f"{folder}/run", "--img-dir", f"{folder}/img")
        score = start("evaluate.py", f"{folder}/run", "--episodes", EPISODES, "--seed", EVALUATION_SEED + seed)
        with (Path(folder) / "run" / "updates.csv").open(newline="") as file:
            *_, last = csv.DictReader(file)
        config = json.loads((Path(folder) / "run" / "config.json").read_text())
    result = json.loads(score.splitlines()[-1])
    row: dict[str, object] = {**experiment._asdict(), "seed": seed}
    row |= {name: round(result[name], 2) for name in ("mean_return", "std_return", "min_return")}
    return row | {"seconds": round(float(last["wall_time"]), 1), "commit": str(config["commit"])[:12]}


def start(*command: object) -> str:
    """Run a script of the project, and return what it prints."""
    args = [sys.executable, *map(str, command)]
    return subprocess.run(args, cwd=PROJECT, capture_output=True, text=True, check=True).stdout


def print_table() -> None:
    print("| script | environment | timesteps | settings | mean | median | worst seed | all seeds |")
    print("|---|---|---|---|---|---|---|---|")
    done = rows()
    for experiment in EXPERIMENTS:
        scores = sorted(float(row["mean_return"]) for row in done if key(row)[:-1] == experiment)
        if scores:
            script, env, timesteps, variant = experiment
            seeds = ", ".join(f"{score:.0f}" for score in scores)
            print(
                f"| {script} | {env} | {timesteps:,} | {variant} | {mean(scores):.1f} | {median(scores):.1f}"
                f" | {scores[0]:.1f} | {seeds} |"
            )


def key(row: dict[str, str]) -> tuple[str, str, int, str, int]:
    """What a row is the result of: an experiment and a seed."""
    return row["script"], row["env"], int(row["timesteps"]), row["variant"], int(row["seed"])


def main(config: Config) -> None:
    done = {key(row) for row in rows()}
    chosen = [e for e in EXPERIMENTS if config.only in f"{e.script} {e.env} {e.variant}"]
    todo = [(experiment, seed) for seed in range(config.seeds) for experiment in chosen]
    lock = Lock()

    def work(experiment: Experiment, seed: int) -> None:
        row = run(experiment, seed)
        with lock:
            RESULTS.parent.mkdir(exist_ok=True)
            new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                if new:
                    writer.writeheader()
                writer.writerow(row)
        print(*row.values(), flush=True)

    if not config.table:
        with ThreadPoolExecutor(config.workers) as pool:
            for result in [pool.submit(work, *task) for task in todo if (*task[0], task[1]) not in done]:
                result.result()
    print_table()


if __name__ == "__main__":
    main(tyro.cli(Config))
