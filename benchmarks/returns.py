"""Train and score both scripts with their defaults, ten seeds each: the README's table of returns.

    python benchmarks/returns.py                   # all of it; what results/returns.csv already has is not done again
    python benchmarks/returns.py --only step       # one script
    python benchmarks/returns.py --table           # no training: print the table of what is there

A row of `results/returns.csv` is a run: 100 evaluation episodes of the final policy, acting by its mode, on
environments that training never saw.
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

import tyro

PROJECT = Path(__file__).parent.parent
RESULTS = PROJECT / "results" / "returns.csv"
COLUMNS = ["script", "env", "timesteps", "seed", "mean_return", "std_return", "min_return", "seconds", "commit"]
EXPERIMENTS = [
    ("epoch", "Pendulum-v0", 100_000),
    ("epoch", "MountainCar-v0", 200_000),
    ("epoch", "CartPole-v1", 60_000),
    ("epoch", "Acrobot-v1", 100_000),
    ("epoch", "Hopper-v4", 200_000),
    ("step", "Pendulum-v0", 200_000),
    ("step", "CartPole-v1", 100_000),
    ("step", "Pendulum-v0", 100_000),
    ("step", "MountainCar-v0", 200_000),
    ("step", "Acrobot-v1", 200_000),
]
EPISODES = 100
EVALUATION_SEED = 1_000  # plus the run's: no environment that training, or another seed's evaluation, has played


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train and score both scripts with their defaults, and print the table of returns."""

    seeds: int = 10
    """Seeds 0 to seeds - 1."""
    workers: int = 1
    """Trainings at once, of one thread each."""
    only: str = ""
    """Only experiments whose "script env" contains this."""
    table: bool = False
    """Train nothing: print the table of what is there."""


def rows() -> list[dict[str, str]]:
    """The runs that are done."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def run(script: str, env: str, timesteps: int, seed: int) -> dict[str, object]:
    """Train one seed in a process of its own, score it in another, and return its row."""
    with tempfile.TemporaryDirectory() as folder:
        train = [f"a2c_algorithm_{script}_update.py", "--env", env, "--seed", seed, "--total-timesteps", timesteps]
        start(*train, "--run-dir", f"{folder}/run", "--img-dir", f"{folder}/img")
        score = start("evaluate.py", f"{folder}/run", "--episodes", EPISODES, "--seed", EVALUATION_SEED + seed)
        with (Path(folder) / "run" / "updates.csv").open(newline="") as file:
            *_, last = csv.DictReader(file)
        config = json.loads((Path(folder) / "run" / "config.json").read_text())
    result = json.loads(score.splitlines()[-1])
    row: dict[str, object] = {"script": script, "env": env, "timesteps": timesteps, "seed": seed}
    row |= {name: round(result[name], 2) for name in ("mean_return", "std_return", "min_return")}
    return row | {"seconds": round(float(last["wall_time"]), 1), "commit": str(config["commit"])[:12]}


def start(*command: object) -> str:
    """Run a script of the project, and return what it prints."""
    args = [sys.executable, *map(str, command)]
    return subprocess.run(args, cwd=PROJECT, capture_output=True, text=True, check=True).stdout


def print_table() -> None:
    print("| script | environment | timesteps | mean | median | worst seed | all seeds |")
    print("|---|---|---|---|---|---|---|")
    done = rows()
    for script, env, timesteps in EXPERIMENTS:
        key = (script, env, str(timesteps))
        runs = [row for row in done if (row["script"], row["env"], row["timesteps"]) == key]
        scores = sorted(float(row["mean_return"]) for row in runs)
        if scores:
            seeds = ", ".join(f"{score:.0f}" for score in scores)
            print(
                f"| {script} | {env} | {timesteps:,} | {mean(scores):.1f} | {median(scores):.1f}"
                f" | {scores[0]:.1f} | {seeds} |"
            )


def main(config: Config) -> None:
    done = {(row["script"], row["env"], int(row["timesteps"]), int(row["seed"])) for row in rows()}
    chosen = [experiment for experiment in EXPERIMENTS if config.only in f"{experiment[0]} {experiment[1]}"]
    todo = [(*experiment, seed) for experiment in chosen for seed in range(config.seeds)]
    lock = Lock()

    def work(task: tuple[str, str, int, int]) -> None:
        row = run(*task)
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
            for result in [pool.submit(work, task) for task in todo if task not in done]:
                result.result()
    print_table()


if __name__ == "__main__":
    main(tyro.cli(Config))
