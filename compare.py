"""Compare updating after every step with updating after every batch: many seeds of each, a table and figures.

    python compare.py --env Pendulum-v0                                          # both modes, ten seeds each
    python compare.py --env Pendulum-v0 --curves step-textbook step epoch        # or these curves
    python compare.py --from-results                                             # no training: draw all figures again

What is in the folder of results already is not trained again; a run that was interrupted goes on. For each environment
there are, in `results/`,

    compare_<env>.csv            a row a run: its score, how long it took, the commit and settings that made it
    compare_<env>_curves.csv     a row for each fiftieth of each run: mean return of the last 20 episodes of training
    compare_<env>_episodes.csv   every episode of seed 0 of the default settings

The statistics are those of Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"
(arXiv 2108.13264): interquartile means with bootstrapped intervals, and probabilities of improvement.
"""

import csv
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from scipy import stats

import environments
from environments import UsageError
from training import Policy, evaluate
from training.cli import fail, tyro_cli
from training.experiments import EPISODES, POINTS, WINDOW, Task, grid, learning_curve, read_csv, train_all, write_csv
from training.files import check_writable, file_name
from training.provenance import commit
from utils import plot_returns


class Curve(NamedTuple):
    """A way to train, and the style of its line; dashes and markers tell the lines apart without color."""

    label: str
    script: str
    flags: str
    color: str
    dashes: Any
    marker: str


CURVES = {
    "step": Curve("step update", "step", "", "#0072B2", "-", "o"),
    "step-textbook": Curve("step update, textbook", "step", "--textbook", "#56B4E9", "--", "s"),
    "epoch": Curve("epoch update", "epoch", "", "#D55E00", "-", "^"),
    "epoch-no-gae": Curve("epoch, no GAE", "epoch", "--gae-lambda 0", "#E69F00", "--", "v"),
    "epoch-no-obs-norm": Curve("epoch, no observation normalization", "epoch", "--no-obs-norm", "#009E73", ":", "D"),
    "epoch-neither": Curve("epoch, neither of them", "epoch", "--gae-lambda 0 --no-obs-norm", "#CC79A7", "-.", "X"),
}
CurveName = Literal["step", "step-textbook", "epoch", "epoch-no-gae", "epoch-no-obs-norm", "epoch-neither"]
RANDOM = "random"
"""In place of a curve's name: a policy that acts at random."""

COLUMNS = [
    ["curve", "seed", "timesteps", "mean_return", "std_return", "min_return", "seconds", "commit", "settings"],
    ["curve", "seed", "timestep", "seconds", "return"],
    ["curve", "timestep", "return"],
]
"""Columns of the three files."""
THRESHOLDS = {"Pendulum-v0": -200.0}
"""Returns at which an environment counts as solved, where Gymnasium defines none."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train both update modes on many seeds, and compare them in a table and figures."""

    env: str = "Pendulum-v0"
    """Environment: a Gymnasium id, or module:Id-v0 to import the module that registers it."""
    curves: tuple[CurveName, ...] = ("step", "epoch")
    """Curves to train. Figure and table show all curves in the folder of results."""
    seeds: int = 10
    """Number of seeds, 0 and up; at least two, for an interval."""
    total_timesteps: int = 100_000
    """Timesteps of each run; the same as in the folder of results."""
    workers: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    """Runs at the same time, with one thread each; by default one per core."""
    results: Path = Path("results")
    """Folder of the results."""
    img_dir: Path = Path("img")
    """Folder of the figures."""
    from_results: bool = False
    """Train nothing: draw the figures and print the tables of all environments in the folder of results."""

    def validate(self) -> None:
        """Raise a `UsageError` for the first setting that cannot be."""
        for name, least in (("seeds", 2), ("total_timesteps", 1), ("workers", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least {least}")
        if not self.curves:
            raise UsageError(f"--curves needs at least one of {', '.join(CURVES)}")
        check_writable("--results", self.results)
        check_writable("--img-dir", self.img_dir)


class Results:
    """The results of one environment, in three CSV files.

    Args:
        folder: of the results.
        name: the environment's id, as a part of file names.

    Raises:
        UsageError: a file is damaged.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.paths = [folder / f"compare_{name}{part}.csv" for part in ("", "_curves", "_episodes")]
        self.tables = self.runs, self.points, self.episodes = [*map(read_csv, self.paths, COLUMNS)]
        for path, rows in zip(self.paths, self.tables, strict=True):
            for line, row in enumerate(rows, 2):
                try:
                    for column, value in row.items():
                        if column not in ("curve", "commit", "settings"):
                            (int if column in ("seed", "timestep", "timesteps") else float)(value)
                except ValueError as error:
                    raise UsageError(f"{path}, line {line}: {error}; put the file back as it was") from error
                if row["curve"] not in (*CURVES, RANDOM):
                    raise UsageError(f"{path}, line {line}: {row['curve']} is none of {', '.join(CURVES)}")
        if len({row["timesteps"] for row in self.runs}) > 1:
            raise UsageError(f"{self.paths[0]} holds runs of different timesteps; put it back as it was")

    @property
    def curves(self) -> list[str]:
        """The names of the curves with results."""
        there = {row["curve"] for row in self.runs}
        return [name for name in CURVES if name in there]

    @property
    def timesteps(self) -> int:
        """Length of the runs."""
        return int(self.runs[0]["timesteps"])

    @property
    def random_return(self) -> float:
        """Mean return of a random policy."""
        return next(float(row["mean_return"]) for row in self.runs if row["curve"] == RANDOM)

    def seeds(self, curve: str) -> list[int]:
        """The seeds with results."""
        return sorted(int(row["seed"]) for row in self.runs if row["curve"] == curve)

    def scores(self, curve: str) -> np.ndarray:
        """Mean return of the evaluation of each seed, in order, (S,)."""
        return np.array(self._column(self.runs, curve, "mean_return"))

    def seconds(self, curve: str) -> np.ndarray:
        """Training time of each seed in seconds, (S,)."""
        return np.array(self._column(self.runs, curve, "seconds"))

    def history(self, curve: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Timesteps (POINTS,), seconds (S, POINTS) and training returns (S, POINTS), nan before there are any."""
        columns = (self._column(self.points, curve, column) for column in ("timestep", "seconds", "return"))
        timesteps, seconds, returns = (np.array(column).reshape(-1, POINTS) for column in columns)
        return timesteps[0], seconds, returns

    def _column(self, rows: Sequence[Mapping[str, str]], curve: str, column: str) -> list[float]:
        chosen = sorted((row for row in rows if row["curve"] == curve), key=lambda row: int(row["seed"]))
        return [float(row[column]) for row in chosen]

    def check_complete(self) -> None:
        """Raise a `UsageError` if a curve lacks seeds that another has, or a run its curve."""
        if not self.curves:
            raise UsageError(f"{self.paths[0]} holds no run; python compare.py --env {self.name} trains some")
        seeds = range(1 + max(seed for curve in self.curves for seed in self.seeds(curve)))
        points = grid(self.timesteps).tolist()
        for curve in self.curves:
            missing = set(seeds).difference(self.seeds(curve))
            if missing:
                command = f"compare.py --env {self.name} --curves {curve} --total-timesteps {self.timesteps}"
                raise UsageError(f"{self.paths[0]} has no seed {min(missing)} of {curve}; python {command} trains it")
            if self.seeds(curve) != list(seeds):
                raise UsageError(f"{self.paths[0]} has a seed of {curve} twice; put it back as it was")
            for seed in seeds:
                mine = [row for row in self.points if (row["curve"], row["seed"]) == (curve, str(seed))]
                if [int(row["timestep"]) for row in mine] != points:
                    what = f"the {POINTS} points of seed {seed} of {curve}"
                    raise UsageError(f"{self.paths[1]} has not {what}; put it back as it was")
        if not any(row["curve"] == RANDOM for row in self.runs):
            raise UsageError(f"{self.paths[0]} has no random policy; put it back as it was")

    def keep(self, curve: str, task: Task, score: Mapping[str, Any]) -> None:
        """Add a finished run."""
        # After a crash, the points of a run may be there without its row.
        self.points[:] = [row for row in self.points if (row["curve"], row["seed"]) != (curve, str(task.seed))]
        points = learning_curve(task)
        for timestep, seconds, value in points:
            values = [curve, str(task.seed), str(timestep), f"{seconds:.2f}", f"{value:.2f}"]
            self.points.append(dict(zip(COLUMNS[1], values, strict=True)))
        if task.seed == 0 and not task.flags:
            self.episodes[:] = [row for row in self.episodes if row["curve"] != curve]
            with (task.directory / "episodes.csv").open(newline="") as file:
                self.episodes += [
                    {"curve": curve, "timestep": row["timestep"], "return": f"{float(row['return']):.6g}"}
                    for row in csv.DictReader(file)
                ]
        self._add(curve, task.seed, task.timesteps, score, points[-1][1], task.flags)

    def keep_random(self, env: str, timesteps: int) -> None:
        """Add the random policy."""
        score = evaluate(RandomPolicy(env), env, episodes=EPISODES, seed=0)
        self._add(RANDOM, 0, timesteps, score | {"commit": commit()}, 0.0, "")

    def _add(self, curve: str, seed: int, timesteps: int, score: Mapping[str, Any], seconds: float, flags: str) -> None:
        values = [curve, seed, timesteps, *(f"{score[name]:.2f}" for name in COLUMNS[0][3:6])]
        values += [f"{seconds:.1f}", score["commit"], flags]
        self.runs.append(dict(zip(COLUMNS[0], map(str, values), strict=True)))
        self._write()

    def _write(self) -> None:
        order = [*CURVES, RANDOM]
        # The runs last: a row of theirs promises that the other files are complete.
        for path, columns, rows in list(zip(self.paths, COLUMNS, self.tables, strict=True))[::-1]:
            rows.sort(key=lambda row: (order.index(row["curve"]), int(row.get("seed", 0))))
            write_csv(path, columns, rows)


class RandomPolicy(Policy):
    """Acts at random."""

    device = torch.device("cpu")

    def __init__(self, env: str) -> None:
        self.space = environments.make_env(env).action_space
        self.space.seed(0)

    def __call__(self, observations: np.ndarray, stochastic: bool = False) -> np.ndarray:
        return np.array([self.space.sample() for _ in observations])


def iqm(values: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean: of the values without the lowest and the highest quarter."""
    return stats.trim_mean(values, 0.25, axis=axis)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A 95 % bootstrap interval of the interquartile mean over the first axis, the seeds, by 2,000 resamples."""
    result = stats.bootstrap(
        (values,), iqm, axis=0, n_resamples=2000, vectorized=True, method="percentile", rng=np.random.default_rng(0)
    )
    return result.confidence_interval.low, result.confidence_interval.high


def probability_of_improvement(better: np.ndarray, worse: np.ndarray) -> float:
    """The probability that a seed of `better` scores above one of `worse`, over all pairs; ties count half."""
    return stats.mannwhitneyu(better, worse).statistic / (len(better) * len(worse))


def solved(results: Results, curve: str, threshold: float | None) -> tuple[np.ndarray, ...]:
    """Timesteps and seconds, (S,), after which each seed's training return first reached a threshold; inf for never.

    None of them if there is no threshold.
    """
    if threshold is None:
        return ()
    timesteps, seconds, returns = results.history(curve)
    first, ever = (returns >= threshold).argmax(axis=1), (returns >= threshold).any(axis=1)
    return tuple(np.where(ever, x, np.inf) for x in (timesteps[first], seconds[np.arange(len(first)), first]))


def threshold_of(name: str) -> float | None:
    """The return from which on an environment counts as solved, if there is one."""
    spec = gym.registry.get(name)
    return THRESHOLDS.get(name, spec.reward_threshold if spec else None)


def table(results: Results) -> list[str]:
    """A table in Markdown: scores of the final policies, and what it took to reach the threshold."""
    threshold = threshold_of(results.name)
    head = ["curve", "settings", "IQM (95 % interval)", "mean", "median", "worst seed", "beats the epoch update"]
    head += [] if threshold is None else [f"timesteps to {threshold:g}", f"seconds to {threshold:g}"]
    rows = [[*head, "seconds in all"], ["---"] * (len(head) + 1)]
    for curve in results.curves:
        label, _, flags, *_ = CURVES[curve]
        scores = results.scores(curve)
        low, high = interval(scores)
        row = [label, f"`{flags}`" if flags else "defaults", f"{iqm(scores):.1f} ({low:.1f} to {high:.1f})"]
        row += [f"{statistic(scores):.1f}" for statistic in (np.mean, np.median, np.min)]
        compared = curve != "epoch" and "epoch" in results.curves
        row.append(f"{probability_of_improvement(scores, results.scores('epoch')):.2f}" if compared else "")
        for firsts, form in zip(solved(results, curve, threshold), (",.0f", ".1f"), strict=False):
            through, middle = np.isfinite(firsts).sum(), np.median(firsts)
            count = "" if through == len(firsts) else f"{through} of {len(firsts)} seeds"
            row.append(f"{middle:{form}} ({count})".replace(" ()", "") if np.isfinite(middle) else count)
        rows.append([*row, f"{np.median(results.seconds(curve)):.1f}"])
    rows.append(["random policy", "", "", f"{results.random_return:.1f}", *[""] * (len(rows[0]) - 4)])
    return ["| " + " | ".join(row) + " |" for row in rows]


def draw(results: Results, img_dir: Path) -> list[Path]:
    """Draw the comparison, and seed 0 of both modes as their scripts do; returns the pictures."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for curve in results.curves:
        label, _, _, color, dashes, marker = CURVES[curve]
        timesteps, seconds, returns = results.history(curve)
        known = ~np.isnan(returns).any(axis=0)
        if not known.any():  # runs shorter than an episode
            continue
        middle, (low, high) = iqm(returns[:, known]), interval(returns[:, known])
        for axes, x in ((left, timesteps[known]), (right, np.median(seconds, axis=0)[known])):
            axes.fill_between(x, low, high, color=color, alpha=0.2, linewidth=0)
            axes.plot(x, middle, color=color, linestyle=dashes, marker=marker, markevery=8, markersize=5, label=label)
    threshold = threshold_of(results.name)
    for axes, x in ((left, "timesteps"), (right, "seconds of training (median over seeds)")):
        axes.axhline(results.random_return, color="0.4", linewidth=1, linestyle=(0, (1, 3)), label="random policy")
        if threshold is not None:
            axes.axhline(threshold, color="0.4", linewidth=1, linestyle=(0, (6, 3)), label=f"solved: {threshold:g}")
        axes.set(xlabel=x, xlim=(0, None))
        axes.grid(alpha=0.3)
    left.set_ylabel(f"return, mean of {WINDOW} training episodes")
    left.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    figure.suptitle(
        f"A2C on {results.name}: interquartile mean and 95 % interval of {len(results.seeds(results.curves[0]))} seeds,"
        f" {results.timesteps:,} timesteps"
    )
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    img_dir.mkdir(parents=True, exist_ok=True)
    pictures = [img_dir / f"compare_{results.name}.png"]
    figure.savefig(pictures[0], dpi=100)
    for script, suffix in (("step", ""), ("epoch", "_epoch")):
        episodes = [row for row in results.episodes if row["curve"] == script]
        if episodes:
            pictures.append(img_dir / f"A2C_{results.name}{suffix}.png")
            ends, values = ([float(row[column]) for row in episodes] for column in ("timestep", "return"))
            plot_returns(pictures[-1], ends, values, f"A2C, {script} update: {results.name}, seed 0")
    return pictures


def report(results: Results, img_dir: Path) -> None:
    """Print the table and draw the figures of an environment."""
    results.check_complete()
    print(f"\n{results.name}, {results.timesteps:,} timesteps\n", *table(results), "", sep="\n")
    for picture in draw(results, img_dir):
        print(picture)


def compare(config: Config) -> int:
    """Train the missing runs, and report; returns the exit status."""
    environments.make_env(config.env)  # raises if there is no such environment
    results = Results(config.results, file_name(config.env))
    if results.runs and results.timesteps != config.total_timesteps:
        raise UsageError(
            f"--total-timesteps {config.total_timesteps}: {results.paths[0]} holds runs of {results.timesteps};"
            " choose that, or another folder for --results"
        )
    todo = {
        Task(CURVES[curve].script, config.env, config.total_timesteps, CURVES[curve].flags, seed): curve
        for seed in range(config.seeds)
        for curve in config.curves
        if seed not in results.seeds(curve)
    }
    if not any(row["curve"] == RANDOM for row in results.runs):
        results.keep_random(config.env, config.total_timesteps)
    failed = train_all(list(todo), config.workers, lambda task, score: results.keep(todo[task], task, score))
    if failed:
        print(f"{failed} of {len(todo)} runs failed; the same command tries them again", file=sys.stderr)
        return 1
    report(results, config.img_dir)
    return 0


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        config = tyro_cli(Config, sys.argv[1:])
        config.validate()
        if config.from_results:
            names = sorted(
                path.stem.removeprefix("compare_")
                for path in config.results.glob("compare_*.csv")
                if not path.stem.endswith(("_curves", "_episodes"))
            )
            if not names:
                raise UsageError(f"--results {config.results} holds no compare_<env>.csv; train without --from-results")
            for name in names:
                report(Results(config.results, name), config.img_dir)
        else:
            sys.exit(compare(config))
    except UsageError as error:
        fail(error, 2)
    except OSError as error:
        fail(OSError(f"{error.filename} cannot be written: {error.strerror}"), 1)
    except KeyboardInterrupt:
        fail(KeyboardInterrupt("interrupted; run the same command again to continue"), 128 + signal.SIGINT)


if __name__ == "__main__":
    main()
