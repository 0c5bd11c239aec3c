"""Train and score A2C on MuJoCo, five seeds each, beside what others have published: the README's table and figure.

    python -m benchmarks.mujoco                # all of it, some hours; what is in results/ already is not done again
    python -m benchmarks.mujoco --only Hopper
    python -m benchmarks.mujoco --table        # no training: print the tables and draw img/mujoco.png

A row of `results/mujoco.csv` is a run of 1,000,000 timesteps: ten evaluation episodes of its final policy, acting by
its mode, as Tianshou's benchmark has it. `results/mujoco_curves.csv` has the returns of training. What `presets.toml`
gains is what runs without it lose: those are here as well.
"""

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
from training.settings import preset

PROJECT = Path(__file__).parent.parent

RESULTS = PROJECT / "results" / "mujoco.csv"
CURVES = PROJECT / "results" / "mujoco_curves.csv"
FIGURE = PROJECT / "img" / "mujoco.png"
COLUMNS = ["script", "env", "flags", "seed", "mean_return", "std_return", "min_return", "seconds", "commit"]
CURVE_COLUMNS = ["script", "env", "flags", "seed", "timestep", "return"]
TIMESTEPS = 1_000_000
EPISODES = 10


class Published(NamedTuple):
    """Returns at 1,000,000 timesteps that others report, as they write them; "-" where they report none."""

    tianshou_a2c: str
    """Its MuJoCo benchmark: mean and deviation over ten seeds (v3 of the environments)."""
    sb3_a2c: str
    """The benchmark of RL Baselines3 Zoo: mean and deviation over the episodes of one policy."""
    ppo_paper_a2c: str
    """Schulman et al. 2017 (arXiv 1707.06347), figure 3, as read off by Tianshou (v1)."""
    tianshou_ppo: str
    """As the first; not A2C, for the record."""

    @property
    def best_a2c(self) -> float:
        """The highest mean of an A2C."""
        return max(self.means[:3])

    @property
    def means(self) -> list[float]:
        """Of each column, -inf where there is none."""
        return [float(text.split()[0].lstrip("~")) if text != "-" else -np.inf for text in self]


ENVIRONMENTS = {
    "HalfCheetah-v4": Published("1830 ± 1068", "3041 ± 157", "~1000", "5784 ± 1244"),
    "Hopper-v4": Published("1253 ± 458", "733 ± 377", "~900", "2609 ± 701"),
    "Walker2d-v4": Published("1092 ± 709", "582 ± 128", "~850", "3589 ± 757"),
    "Ant-v4": Published("3485 ± 433", "-44 ± 63", "-", "3258 ± 1079"),
    "Swimmer-v4": Published("36.6 ± 2.1", "200.6 ± 2.5", "~31", "-"),
    "Humanoid-v4": Published("1726 ± 1070", "388 ± 93", "-", "-"),
    "Reacher-v4": Published("-6.7 ± 2.3", "-", "~-24", "-"),
    "InvertedPendulum-v4": Published("1000", "-", "~1000", "-"),
    "InvertedDoublePendulum-v4": Published("9258 ± 277", "-", "~7100", "-"),
}
STEP = ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4"]
"""Where the step update is trained as well."""
GAINS = [*((env, "--no-preset") for env in ENVIRONMENTS if preset("epoch", env)), ("Swimmer-v4", "--num-envs 16")]
"""The epoch update without a preset, or with a part of it changed back, to see what that is worth."""
EXPERIMENTS = [
    *(("epoch", env, "") for env in ENVIRONMENTS),
    *(("step", env, "") for env in STEP),
    *(("epoch", env, flags) for env, flags in GAINS),
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train A2C on MuJoCo's environments, and print the tables of returns and draw the figure."""

    seeds: int = 5
    """Seeds 0 to seeds - 1."""
    workers: int = 1
    """Trainings at once, of one thread each."""
    only: str = ""
    """Only experiments whose "script env flags" contains this."""
    table: bool = False
    """Train nothing: print the tables of what is there, and draw the figure."""


def key(row: Mapping[str, str]) -> tuple[str, str, str, int]:
    """What a row is the result of: an experiment and a seed."""
    return row["script"], row["env"], row["flags"], int(row["seed"])


def scores_of(rows: Sequence[Mapping[str, str]], *experiment: str) -> np.ndarray:
    """The mean returns of an experiment's seeds, in order, (S,)."""
    chosen = sorted((row for row in rows if key(row)[:3] == experiment), key=key)
    return np.array([float(row["mean_return"]) for row in chosen])


def print_table() -> None:
    """The README's tables: beside what others have published, and what the presets are worth."""
    rows = read_csv(RESULTS, COLUMNS)
    ours = ["epoch update: mean (95 % interval)", "all seeds", "best published A2C", "PPO"]
    step = ["step update: mean (95 % interval)", "all seeds"]
    lines = [["environment", *ours, *step, "Tianshou A2C", "SB3 zoo A2C", "PPO paper's A2C", "Tianshou PPO"]]
    lines.append(["---"] * len(lines[0]))
    for env, published in ENVIRONMENTS.items():
        epoch = scores_of(rows, "epoch", env, "")
        if len(epoch):
            verdicts = [verdict(mean(epoch), other) for other in (published.best_a2c, published.means[-1])]
            lines.append([env, *shown(epoch), *verdicts, *shown(scores_of(rows, "step", env, "")), *published])
    print(*("| " + " | ".join(line) + " |" for line in lines), sep="\n")
    print("\n| environment | flags | mean (95 % interval) | all seeds | without these flags |\n|---|---|---|---|---|")
    for env, flags in GAINS:
        without, preset = scores_of(rows, "epoch", env, flags), scores_of(rows, "epoch", env, "")
        if len(without) and len(preset):
            print("| " + " | ".join([env, f"`{flags}`", *shown(without), shown(preset)[0]]) + " |")


def shown(scores: np.ndarray) -> tuple[str, str]:
    """Mean and 95 % interval (Student's t) of the scores of the seeds, and the scores, the worst first."""
    if len(scores) == 0:
        return "-", "-"
    digits = 0 if abs(scores).max() >= 100 else 1
    text = f"{mean(scores):.{digits}f}"
    if np.ptp(scores) > 0:
        low, high = stats.ttest_1samp(scores, 0).confidence_interval()
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    return text, ", ".join(f"{score:.{digits}f}" for score in sorted(scores))


def verdict(score: float, other: float) -> str:
    """How a mean compares with a published one."""
    if np.isinf(other):
        return "-"
    return "beaten" if score > other else "reached" if score == other else "lost"


def draw() -> None:
    """Draw the training returns of both scripts on all environments."""
    from matplotlib.figure import Figure

    rows = read_csv(CURVES, CURVE_COLUMNS)
    figure = Figure(figsize=(12, 9), layout="constrained")
    for axes, (env, published) in zip(figure.subplots(3, 3).flat, ENVIRONMENTS.items(), strict=True):
        for script, color, dashes in (("epoch", "#D55E00", "-"), ("step", "#0072B2", "--")):
            points = [row for row in rows if key(row)[:3] == (script, env, "")]
            curves = [
                [(int(row["timestep"]), float(row["return"])) for row in points if int(row["seed"]) == seed]
                for seed in sorted({int(row["seed"]) for row in points})
            ]
            for curve in curves:
                axes.plot(*zip(*curve, strict=True), color=color, alpha=0.3, linewidth=0.8)
            if curves:
                timesteps, returns = np.moveaxis(np.array(curves), -1, 0)
                axes.plot(timesteps[0], returns.mean(axis=0), color, linestyle=dashes, label=f"{script} update, mean")
        for level, dots, label in (
            (published.best_a2c, (0, (1, 2)), "best published A2C"),
            (published.means[-1], (0, (6, 3)), "Tianshou's PPO"),
        ):
            if np.isfinite(level):
                axes.axhline(level, color="0.4", linewidth=1, linestyle=dots, label=label)
        axes.set(title=env, xlim=(0, TIMESTEPS))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        axes.grid(alpha=0.3)
    figure.suptitle(f"A2C on MuJoCo, all seeds: return, mean of {WINDOW} training episodes, against timesteps")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=100)


def main(config: Config) -> None:
    done, points = read_csv(RESULTS, COLUMNS), read_csv(CURVES, CURVE_COLUMNS)
    there = {key(row) for row in done}
    todo = [
        Task(script, env, TIMESTEPS, flags, seed)
        for seed in range(config.seeds)
        for script, env, flags in EXPERIMENTS
        if config.only in f"{script} {env} {flags}" and (script, env, flags, seed) not in there
    ]

    def keep(task: Task, score: dict[str, Any]) -> None:
        run = dict(zip(COLUMNS, (task.script, task.env, task.flags, str(task.seed)), strict=False))
        curve = learning_curve(task)
        points[:] = [row for row in points if key(row) != key(run)]  # of a run whose row was lost in a crash
        points.extend(run | {"timestep": str(timestep), "return": f"{value:.2f}"} for timestep, _, value in curve)
        points.sort(key=key)
        write_csv(CURVES, CURVE_COLUMNS, points)
        numbers = {name: f"{score[name]:.2f}" for name in ("mean_return", "std_return", "min_return")}
        done.append(run | numbers | {"seconds": f"{curve[-1][1]:.1f}", "commit": score["commit"]})
        done.sort(key=key)
        write_csv(RESULTS, COLUMNS, done)

    failed = 0 if config.table else train_all(todo, config.workers, keep, EPISODES)
    print_table()
    draw()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(tyro.cli(Config))
