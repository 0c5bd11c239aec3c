"""Train and score both scripts on many environments, beside what others have published.

    python -m benchmarks.returns                   # all of it; what results/returns.csv already has is not done again
    python -m benchmarks.returns --only Hopper     # one environment
    python -m benchmarks.returns --only "no traces"
    python -m benchmarks.returns --table           # no training: print the tables of what is there, and draw the figure

A row of `results/returns.csv` is a run: 100 evaluation episodes of the final policy, acting by its mode, on
environments that training never saw. `variant` says which settings were not the defaults. The points of its learning
curve are in `results/returns_curves.csv`.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
import tyro
from scipy import stats

from benchmarks.measuring import PROJECT, print_table
from training.experiments import WINDOW, Task, learning_curve, read_csv, train_all, write_csv

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
    step_timesteps: int | None = None
    """Of the step update, which takes long with images; None: as many."""
    seeds: int = 10


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
    # MinAtar: its authors' A2C (arXiv 1903.03176), the mean return of training. gymnax's games have only the actions
    # that do something.
    "MinAtar/Asterix-v0": Environment(5_000_000, "19 (MinAtar)", "15 (gymnax, 10M)", 1_000_000, 3),
    "MinAtar/Breakout-v0": Environment(5_000_000, "17.5 (MinAtar)", "28 (gymnax, 10M)", 5_000_000, 3),
    "MinAtar/Freeway-v0": Environment(5_000_000, "47.5 (MinAtar)", "58 (gymnax, 10M)", 1_000_000, 3),
    "MinAtar/Seaquest-v0": Environment(5_000_000, "15.5 (MinAtar)", "", 1_000_000, 3),
    "MinAtar/SpaceInvaders-v0": Environment(5_000_000, "185 (MinAtar)", "131 (gymnax, 10M)", 5_000_000, 3),
    "ALE/Pong-v5": Environment(3_000_000, "17.3 (Zoo, 10M)", "", 0, 1),
    "CarRacing-v3": Environment(500_000, "", "", 0, 1),
}
VARIANTS = {
    "epoch": {
        "discount 0.99": "--gamma 0.99",
        "no GAE": "--gae-lambda 0",
        "one gradient step of the critic": "--critic-updates 1",
        "independent noise": "--repeat-noise 0",
        "steps of any length": "--max-kl 1000",
        "entropy bonus": "--ent-coef 0.01",
        "no observation normalization": "--no-obs-norm",
        "no reward scaling": "--no-reward-norm",
        "no layer normalization": "--no-layer-norm",
        "unlimited mean": "--mean-limit 0",
        "batches of 32": "--num-envs 4 --sample-size 32",
        "batches of 512": "--num-envs 16 --sample-size 512",
    },
    "step": {
        "discount 0.99": "--gamma 0.99",
        "no traces": "--trace-lambda 0",
        "no observation normalization": "--no-obs-norm",
        "no reward scaling": "--no-reward-norm",
        "no layer normalization": "--no-layer-norm",
        "constant learning rates": "--no-anneal-lr",
        "independent noise": "--repeat-noise 0",
        "unlimited mean": "--mean-limit 0",
        "textbook": "--textbook",
    },
}
"""Ablations: flags that remove, add or change one part."""
SETTINGS = {"defaults": "", "gamma 0.9999": "--gamma 0.9999"}
"""The defaults, and what some environments need beside them."""
INGREDIENTS = ["Pendulum-v0", "MountainCar-v0", "LunarLander-v3"]
"""The environments that they are measured on."""
BATCHES = ["batches of 32", "defaults", "batches of 512"]
BATCH_ENVIRONMENTS = ["Pendulum-v0", "LunarLander-v3", "HalfCheetah-v4", "Ant-v4"]
"""The environments that the rule for the learning rates, in proportion to the square root of the batch, is tried on."""
BOUND = ["defaults", "steps of any length"]
BOUND_ENVIRONMENTS = [env for env, environment in ENVIRONMENTS.items() if environment.seeds == 10]
"""The environments that the bound on the change of the policy is tried on."""
FEW_SEEDS = 3
"""Of parts on other environments than INGREDIENTS."""


class Experiment(NamedTuple):
    script: str
    env: str
    timesteps: int
    variant: str = "defaults"

    @property
    def flags(self) -> str:
        """The flags of its variant."""
        return {**SETTINGS, **VARIANTS[self.script]}[self.variant]


def defaults(script: str, env: str) -> Experiment:
    """A script with its defaults."""
    environment = ENVIRONMENTS[env]
    own = environment.step_timesteps if script == "step" else None
    return Experiment(script, env, environment.timesteps if own is None else own)


EXPERIMENTS = [
    *(experiment for env in ENVIRONMENTS for script in VARIANTS if (experiment := defaults(script, env)).timesteps),
    *(Experiment(script, "Swimmer-v4", 1_000_000, "gamma 0.9999") for script in VARIANTS),
    *(
        Experiment(script, env, ENVIRONMENTS[env].timesteps, variant)
        for script, variants in VARIANTS.items()
        for env in INGREDIENTS
        for variant in variants
    ),
    *(
        Experiment("epoch", env, ENVIRONMENTS[env].timesteps, variant)
        for environments, variants in ((BATCH_ENVIRONMENTS, BATCHES), (BOUND_ENVIRONMENTS, BOUND))
        for env in environments
        if env not in INGREDIENTS
        for variant in variants
        if variant != "defaults"
    ),
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train and score both scripts, print the tables of returns, and draw the learning curves."""

    seeds: int = 10
    """Seeds 0 to seeds - 1; fewer with images, and of parts on most environments."""
    workers: int = 1
    """Trainings at once, of one thread each."""
    only: str = ""
    """Only runs that have this in their name: "script env variant", or of another library "algorithm env"."""
    table: bool = False
    """Train nothing: print the tables of what is there, and draw the figure."""


def seeds(experiment: Experiment) -> int:
    """Of how many seeds its results are published: 0 and following."""
    few = experiment.variant not in SETTINGS and experiment.env not in INGREDIENTS
    return FEW_SEEDS if few else ENVIRONMENTS[experiment.env].seeds


def key(row: Mapping[str, str]) -> tuple[Experiment, int]:
    """What a row is the result of: an experiment and a seed."""
    return Experiment(row["script"], row["env"], int(row["timesteps"]), row["variant"]), int(row["seed"])


def all_scores() -> dict[Experiment, np.ndarray]:
    """The mean returns of the seeds of each experiment, the worst first, (S,)."""
    found: dict[Experiment, list[float]] = {}
    for row in read_csv(RESULTS, COLUMNS):
        found.setdefault(key(row)[0], []).append(float(row["mean_return"]))
    return {experiment: np.sort(values) for experiment, values in found.items()}


def print_tables() -> None:
    """The tables of `docs/results.md`: the defaults beside what others publish, and the worth of each ingredient."""
    if not (found := all_scores()):
        return
    rows = []
    for e in EXPERIMENTS:
        if e in found and e.variant in SETTINGS:
            name = f"{e.env}, {e.timesteps:,}" + ("" if e.variant == "defaults" else f", {e.variant}")
            others = f"{ENVIRONMENTS[e.env].a2c or '-'} | {ENVIRONMENTS[e.env].ppo or '-'}"
            rows.append(f"{name} | {e.script} | {interval(found[e])} | {listed(found[e])} | {others}")
    print_table("environment, timesteps | update | mean (95 % interval) | all seeds | others: A2C | others: PPO", rows)
    print(f"\n![Training return against timesteps, both scripts, all seeds](../img/{FIGURE.name})")
    for script, variants in VARIANTS.items():
        rows = []
        for variant in ("defaults", *variants):
            both = [Experiment(script, env, ENVIRONMENTS[env].timesteps, variant) for env in INGREDIENTS]
            if any(e in found for e in both):
                flags = f"`{both[0].flags}`" if both[0].flags else ""
                cells = [f"{mean(found[e]):.1f} | {listed(found[e])}" if e in found else "- | -" for e in both]
                rows.append(f"{variant} | {flags} | {' | '.join(cells)}")
        print()
        heads = " | ".join(f"{env}: mean | all seeds" for env in INGREDIENTS)
        print_table(f"the {script} update with | flags | {heads}", rows)
    for environments, compared, heads in (
        (BATCH_ENVIRONMENTS, BATCHES, "batches of 32 | of 128, the defaults | of 512"),
        (BOUND_ENVIRONMENTS, BOUND, "the defaults | steps of any length (`--max-kl 1000`)"),
    ):
        rows = []
        for env in environments:
            each = [found.get(Experiment("epoch", env, ENVIRONMENTS[env].timesteps, variant)) for variant in compared]
            cells = ["-" if scores is None else f"{number(mean(scores))} ({listed(scores)})" for scores in each]
            rows.append(f"{env} | {' | '.join(cells)}")
        print()
        print_table(f"the epoch update, mean (all seeds) | {heads}", rows)


def print_summary(heads: str) -> None:
    """The table of the READMEs: mean and worst seed of both scripts, beside what others publish; without images."""
    found, rows = all_scores(), []
    for env, (timesteps, a2c, ppo, _, planned) in ENVIRONMENTS.items():
        if planned < 10:
            continue
        both = [defaults(script, env) for script in ("step", "epoch")]
        if any(experiment in found for experiment in both):
            cells = [summary(found[e]) if e in found else "-" for e in both]
            rows.append(" | ".join([f"{env}, {timesteps:,}", *cells, a2c or "-", ppo or "-"]))
    print_table(heads, rows)


def summary(scores: np.ndarray) -> str:
    """Mean, and in brackets the worst seed and, if they are not ten yet, the number of seeds."""
    seeds = "" if len(scores) == 10 else f"; n={len(scores)}"
    return f"{number(mean(scores))} ({number(scores[0])}{seeds})"


def number(score: float) -> str:
    """Rounded to as many digits as matter."""
    return f"{score:.0f}" if abs(score) >= 200 else f"{score:.1f}"


def interval(scores: np.ndarray) -> str:
    """Mean and 95 % interval (Student's t) of the scores of the seeds."""
    digits = 0 if abs(scores).max() >= 100 else 1
    text = f"{mean(scores):.{digits}f}"
    if np.ptp(scores) > 0:
        low, high = stats.ttest_1samp(scores, 0).confidence_interval()
        text += f" ({low:.{digits}f} to {high:.{digits}f})"
    return text


def listed(scores: np.ndarray) -> str:
    """The scores of all seeds."""
    digits = 0 if abs(scores).max() >= 100 else 1
    return ", ".join(f"{score:.{digits}f}" for score in scores)


def draw() -> None:
    """Draw the training returns of both scripts' defaults on all environments."""
    from matplotlib.figure import Figure

    curves: dict[tuple[Experiment, int], list[tuple[int, float]]] = {}
    for row in read_csv(CURVES, CURVE_COLUMNS):
        curves.setdefault(key(row), []).append((int(row["timestep"]), float(row["return"])))
    if not curves:
        return
    measured = [env for env in ENVIRONMENTS if any(experiment.env == env for experiment, _ in curves)]
    rows = -(-len(measured) // 3)
    figure = Figure(figsize=(12, 2.6 * rows + 0.6), layout="constrained")
    for axes, env in zip(figure.subplots(rows, 3, squeeze=False).flat, measured, strict=False):
        timesteps = ENVIRONMENTS[env].timesteps
        for script, color, dashes in (("epoch", "#D55E00", "-"), ("step", "#0072B2", "--")):
            chosen = [c for (e, _), c in curves.items() if e == defaults(script, env)]
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
    for axes in figure.axes[len(measured) :]:
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
        if seed < seeds(e) and config.only in f"{e.script} {e.env} {e.variant}" and (e, seed) not in there
    }

    def keep(task: Task, score: dict[str, Any]) -> None:
        run = dict(zip(COLUMNS, map(str, (*todo[task], task.seed)), strict=False))
        if todo[task].variant == "defaults":
            points[:] = [row for row in points if key(row) != key(run)]  # of a run whose row was lost in a crash
            curve = learning_curve(task)
            points.extend(run | {"timestep": str(timestep), "return": f"{value:.2f}"} for timestep, _, value in curve)
            points.sort(key=key)
            write_csv(CURVES, CURVE_COLUMNS, points)
        last = read_csv(task.directory / "updates.csv", ["wall_time"])[-1]
        numbers = {name: f"{score[name]:.2f}" for name in ("mean_return", "std_return", "min_return")}
        done.append(run | numbers | {"seconds": f"{float(last['wall_time']):.1f}", "commit": score["commit"]})
        done.sort(key=key)
        write_csv(RESULTS, COLUMNS, done)

    # The defaults first and short runs before long ones, so that an interrupted pass has as many rows as possible.
    order = sorted(todo, key=lambda task: (todo[task].variant not in SETTINGS, task.timesteps > 500_000, task.seed))
    failed = 0 if config.table else train_all(order, config.workers, keep)
    print_tables()
    draw()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(tyro.cli(Config))
