"""Runs of the epoch update that fail on purpose, beside one that learns: how failures look in `updates.csv`.

    python -m benchmarks.failures                    # some half a minute, into results/failures.csv
    python -m benchmarks.failures --table            # no training: draw img/failures.png from what is there

A row of the CSV is a row of `updates.csv`, with the mean return of the training episodes that ended since the row
before. Seed 0; the settings are in the titles of the figure.
"""

import tempfile
from pathlib import Path

import tyro

from benchmarks.measuring import PROJECT, Config, Measurements, measure_and_show, python, training
from training.experiments import read_csv

METRICS = ("entropy", "explained_variance")
RESULTS = Measurements("failures", "run", "timestep", "return", *METRICS)
FIGURE = PROJECT / "img" / "failures.png"
RUNS = {
    "It learns": "--env Pendulum-v0 --total-timesteps 100000",
    "The critic does not learn": "--env Pendulum-v0 --total-timesteps 100000 --critic-lr 1e-7",
    "The actor's steps are too large": "--env CartPole-v1 --total-timesteps 60000 --actor-lr 0.02 --max-kl 1000",
    "No reward is found": "--env MountainCar-v0 --total-timesteps 100000 --no-obs-norm",
}


def measure() -> None:
    """Train what is not there."""
    for run, flags in RUNS.items():
        if RESULTS.rows(run=run):
            continue
        with tempfile.TemporaryDirectory() as folder:
            python(*training("epoch", folder, *flags.split(), "--quiet"))
            updates = read_csv(Path(folder, "run", "updates.csv"), ["timestep", *METRICS])
            episodes = read_csv(Path(folder, "run", "episodes.csv"), ["timestep", "return"])
        rows, before = [], 0
        for update in updates:
            now = int(update["timestep"])
            returns = [float(row["return"]) for row in episodes if before < int(row["timestep"]) <= now]
            before = now
            mean = f"{sum(returns) / len(returns):.2f}" if returns else "nan"
            rows.append({"run": run, "return": mean} | {name: update[name] for name in ("timestep", *METRICS)})
        RESULTS.add(*rows)


def draw() -> None:
    """Draw return, entropy and explained variance of all runs against timesteps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    names = ("return", *METRICS)
    panels = figure.subplots(len(names), len(RUNS), sharex="col")
    for (run, flags), column in zip(RUNS.items(), panels.T, strict=True):
        rows = RESULTS.rows(run=run)
        column[0].set_title(f"{run}\n{flags.replace('--env ', '').replace('--total-timesteps', 'for')}", fontsize=9)
        for axes, name in zip(column, names, strict=True):
            known = [(int(row["timestep"]), float(row[name])) for row in rows if row[name] != "nan"]
            axes.plot(*zip(*known, strict=True), color="#D55E00")
            axes.grid(alpha=0.3)
            if name == "explained_variance":
                axes.set_ylim(-1.05, 1.05)
        column[-1].set_xlabel("timestep")
        column[-1].xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    for axes, name in zip(panels[:, 0], names, strict=True):
        axes.set_ylabel(name.replace("_", " "))
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=80)


if __name__ == "__main__":
    measure_and_show(tyro.cli(Config, description=__doc__), {"failures": (measure, draw)})
