"""Train and score both scripts on many environments, ten seeds each, beside what others have published.

    python -m benchmarks.returns                   # all of it; what results/returns.csv already has is not done again
    python -m benchmarks.returns --only Hopper     # one environment
    python -m benchmarks.returns --only "no traces"
    python -m benchmarks.returns --table           # no training: print the tables of what is there, and draw the figure

A row of `results/returns.csv` is a run: 100 evaluation episodes of the final policy, acting by its mode, on
environments that training never saw. `variant` says which settings were not the defaults. The points of its learning
curve are in `results/returns_curves.csv`.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import tyro
from scipy import stats

from training.experiments import WINDOW, Task, learning_curve, read_csv, train_all, write_csv

PROJECT = Path(__file__).parent.parent

RESULTS = PROJECT / "results" / "returns.csv"
CURVES = PROJECT / "results" / "returns_curves.csv"
FIGURE = PROJECT / "img" / "returns.png"
COLUMNS = ["script", "env", "timesteps", "variant", "seed"]
CURVE_COLUMNS = [*COLUMNS, "timestep", "return"]
COLUMNS += ["mean_return", "std_return", "min_return", "seconds", "commit"]


class Environment(NamedTuple):
    """For how many timesteps to train, and the best means that others report, with their source and timesteps."""

    timesteps: int
    a2c: str
    ppo: str


ENVIRONMENTS = {
    "Pendulum-v0": Environment(100_000, "-163 (Zoo, 1M)", "-172 (Zoo, 100k)"),
    "MountainCar-v0": Environment(200_000, "-111 (Zoo, 1M)", "-110 (Zoo, 1M)"),
    "CartPole-v1": Environment(60_000, "500 (Zoo, 500k)", "500 (Zoo, 100k)"),
    "Acrobot-v1": Environment(100_000, "-83.4 (Zoo, 500k)", "-73.5 (Zoo, 1M)"),
    "MountainCarContinuous-v0": Environment(100_000, "91.2 (Zoo, 100k)", "88.3 (Zoo, 20k)"),
    "LunarLander-v3": Environment(200_000, "156 (Zoo, 200k)", "242 (Zoo, 1M)"),
    "LunarLanderContinuous-v3": Environment(500_000, "84.2 (Zoo, 5M)", "271 (Zoo, 1M)"),
    "BipedalWalker-v3": Environment(1_000_000, "300 (Zoo, 5M)", "213 (Zoo, 5M)"),
    "HalfCheetah-v4": Environment(1_000_000, "3041 (Zoo)", "5819 (Zoo)"),
    "Hopper-v4": Environment(1_000_000, "1253 (Tianshou)", "3450 (XuanCe)"),
    "Walker2d-v4": Environment(1_000_000, "1092 (Tianshou)", "4319 (XuanCe)"),
    "Ant-v4": Environment(1_000_000, "3485 (Tianshou)", "3258 (Tianshou)"),
    "Humanoid-v4": Environment(1_000_000, "1726 (Tianshou)", "787 (Tianshou)"),
    "Reacher-v4": Environment(1_000_000, "-6.7 (Tianshou)", "-4.1 (Tianshou)"),
    "InvertedPendulum-v4": Environment(1_000_000, "1000 (Tianshou)", "1000 (Tianshou)"),
    "InvertedDoublePendulum-v4": Environment(1_000_000, "9358 (XuanCe)", "9359 (XuanCe)"),
    "Swimmer-v4": Environment(1_000_000, "201 (Zoo)", "282 (Zoo)"),
}
VARIANTS = {
    "epoch": {
        "no GAE": "--gae-lambda 0",
        "one gradient step of the critic": "--critic-updates 1",
        "independent noise": "--repeat-noise 0",
        "entropy bonus": "--ent-coef 0.01",
        "learning rate not scaled by the standard deviation": "--no-scale-by-std",
        "no observation normalization": "--no-obs-norm",
        "no reward scaling": "--no-reward-norm",
        "no layer normalization": "--no-layer-norm",
        "unlimited mean": "--mean-limit 0",
        "batches of 32": "--num-envs 4 --sample-size 32",
        "batches of 512": "--num-envs 16 --sample-size 512",
    },
    "step": {
        "no traces": "--trace-lambda 0",
        "no observation normalization": "--no-obs-norm",
        "no reward scaling": "--no-reward-norm",
        "no layer normalization": "--no-layer-norm",
        "constant learning rates": "--no-anneal-lr",
        "learning rate not scaled by the standard deviation": "--no-scale-by-std",
        "unlimited mean": "--mean-limit 0",
        "textbook": "--textbook",
    },
}
"""Ablations: flags that remove, add or change one part."""
INGREDIENTS = ["Pendulum-v0", "MountainCar-v0"]
"""The environments that they are measured on."""


class Experiment(NamedTuple):
    script: str
    env: str
    timesteps: int
    variant: str = "defaults"

    @property
    def flags(self) -> str:
        """The flags of its variant."""
        return {"defaults": "", "gamma 0.9999": "--gamma 0.9999", **VARIANTS[self.script]}[self.variant]


EXPERIMENTS = [
    *(Experiment(script, env, e.timesteps) for env, e in ENVIRONMENTS.items() for script in VARIANTS),
    *(Experiment(script, "Swimmer-v4", 1_000_000, "gamma 0.9999") for script in VARIANTS),
    *(
        Experiment(script, env, ENVIRONMENTS[env].timesteps, variant)
        for script, variants in VARIANTS.items()
        for env in INGREDIENTS
        for variant in variants
    ),
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train and score both scripts, print the tables of returns, and draw the learning curves."""

    seeds: int = 10
    """Seeds 0 to seeds - 1."""
    workers: int = 1
    """Trainings at once, of one thread each."""
    only: str = ""
    """Only experiments whose "script env variant" contains this."""
    table: bool = False
    """Train nothing: print the tables of what is there, and draw the figure."""


def key(row: Mapping[str, str]) -> tuple[str, str, int, str, int]:
    """What a row is the result of: an experiment and a seed."""
    return row["script"], row["env"], int(row["timesteps"]), row["variant"], int(row["seed"])


def scores_of(rows: Sequence[Mapping[str, str]], experiment: Experiment) -> np.ndarray:
    """The mean returns of an experiment's seeds, the worst first, (S,)."""
    return np.array(sorted(float(row["mean_return"]) for row in rows if key(row)[:-1] == experiment))


def print_table() -> None:
    """The tables of `docs/results.md`: the defaults beside what others publish, and the worth of each ingredient."""
    rows = read_csv(RESULTS, COLUMNS)
    if not rows:
        return
    print("| environment, timesteps | update | mean (95 % interval) | all seeds | others: A2C | others: PPO |")
    print("|---|---|---|---|---|---|")
    for script, env, timesteps, variant in (e for e in EXPERIMENTS if e.variant in ("defaults", "gamma 0.9999")):
        scores = scores_of(rows, Experiment(script, env, timesteps, variant))
        if len(scores):
            name = f"{env}, {timesteps:,}" + ("" if variant == "defaults" else f", {variant}")
            others = f"{ENVIRONMENTS[env].a2c} | {ENVIRONMENTS[env].ppo}"
            print(f"| {name} | {script} | {' | '.join(shown(scores))} | {others} |")
    print(f"\n![Training return against timesteps, both scripts, all seeds](../img/{FIGURE.name})")
    for script, variants in VARIANTS.items():
        heads = " | ".join(f"{env}: mean | all seeds" for env in INGREDIENTS)
        print(f"\n| the {script} update with | flags | {heads} |\n|---|---|{'---|---|' * len(INGREDIENTS)}")
        for variant in ("defaults", *variants):
            experiments = [Experiment(script, env, ENVIRONMENTS[env].timesteps, variant) for env in INGREDIENTS]
            found = [scores_of(rows, experiment) for experiment in experiments]
            if any(map(len, found)):
                cells = " | ".join(
                    f"{mean(scores):.1f} | {listed(scores)}" if len(scores) else "- | -" for scores in found
                )
                print(f"| {variant} | {f'`{experiments[0].flags}`' if experiments[0].flags else ''} | {cells} |")


def shown(scores: np.ndarray) -> tuple[str, str]:
    """Mean and 95 % interval (Student's t) of the scores of the seeds, and the scores."""
    digits = 0 if abs(scores).max() >= 100 else 1
    text = f"{mean(scores):.{digits}f}"
    if np.ptp(scores) > 0:
        low, high = stats.ttest_1samp(scores, 0).confidence_interval()
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    return text, listed(scores)


def listed(scores: np.ndarray) -> str:
    """The scores of all seeds."""
    digits = 0 if abs(scores).max() >= 100 else 1
    return ", ".join(f"{score:.{digits}f}" for score in scores)


def draw() -> None:
    """Draw the training returns of both scripts' defaults on all environments."""
    from matplotlib.figure import Figure

    curves: dict[tuple[Any, ...], list[tuple[int, float]]] = {}
    for row in read_csv(CURVES, CURVE_COLUMNS):
        curves.setdefault(key(row), []).append((int(row["timestep"]), float(row["return"])))
    if not curves:
        return
    figure = Figure(figsize=(12, 16), layout="constrained")
    for axes, (env, (timesteps, *_)) in zip(figure.subplots(6, 3).flat, ENVIRONMENTS.items(), strict=False):
        for script, color, dashes in (("epoch", "#D55E00", "-"), ("step", "#0072B2", "--")):
            chosen = [c for (*e, _), c in curves.items() if tuple(e) == Experiment(script, env, timesteps)]
            for curve in chosen:
                axes.plot(*zip(*curve, strict=True), color=color, alpha=0.3, linewidth=0.8)
            if chosen:
                x, returns = np.moveaxis(np.array(chosen), -1, 0)
                axes.plot(x[0], returns.mean(axis=0), color, linestyle=dashes, label=f"{script} update, mean")
        axes.set(title=env, xlim=(0, timesteps))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        axes.grid(alpha=0.3)
    figure.suptitle(f"A2C, all seeds: return, mean of {WINDOW} training episodes, against timesteps")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    for axes in figure.axes[len(ENVIRONMENTS) :]:
        axes.remove()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=80)


def main(config: Config) -> None:
    done, points = read_csv(RESULTS, COLUMNS), read_csv(CURVES, CURVE_COLUMNS)
    there = {key(row) for row in done}
    todo = {
        Task(e.script, e.env, e.timesteps, e.flags, seed): e
        for seed in range(config.seeds)
        for e in EXPERIMENTS
        if config.only in f"{e.script} {e.env} {e.variant}" and (*e, seed) not in there
    }

    def keep(task: Task, score: dict[str, Any]) -> None:
        run = dict(zip(COLUMNS, map(str, (*todo[task], task.seed)), strict=False))
        if todo[task].variant == "defaults":
            points[:] = [row for row in points if key(row) != key(run)]  # of a run whose row was lost in a crash
            curve = learning_curve(task)
            points.extend(run | {"timestep": str(timestep), "return": f"{value:.2f}"} for timestep, _, value in curve)
            points.sort(key=key)
            write_csv(CURVES, CURVE_COLUMNS, points)
        with (task.directory / "updates.csv").open(newline="") as file:
            *_, last = csv.DictReader(file)
        numbers = {name: f"{score[name]:.2f}" for name in ("mean_return", "std_return", "min_return")}
        done.append(run | numbers | {"seconds": f"{float(last['wall_time']):.1f}", "commit": score["commit"]})
        done.sort(key=key)
        write_csv(RESULTS, COLUMNS, done)

    # The short runs first, then seed by seed, so that an interrupted pass has as many rows as possible.
    order = sorted(todo, key=lambda task: (task.timesteps > 500_000, task.seed))
    failed = 0 if config.table else train_all(order, config.workers, keep)
    print_table()
    draw()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(tyro.cli(Config))
