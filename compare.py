"""Compare updating after every step with updating after every batch: many seeds of each, a table and figures.

    python compare.py --env Pendulum-v0                                          # both modes, ten seeds each
    python compare.py --env Pendulum-v0 --curves step-textbook step epoch        # or these curves
    python compare.py --env Pendulum-v0 --curve "large batches: --sample-size 512"    # and one of your own
    python compare.py --from-results                                             # no training: draw all figures again

What is in the folder of results already is not trained again; a run that was interrupted goes on. For each environment
there are, in `results/`,

    compare_<env>.csv            a row a run: its score, how long it took, the commit and settings that made it
    compare_<env>_curves.csv     a row for each fiftieth of each run: mean return of the last 20 episodes of training
    compare_<env>_episodes.csv   every episode of seed 0 of the default settings

The statistics are those of Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"
(arXiv 2108.13264): interquartile means with bootstrapped intervals, and probabilities of improvement.
"""

import json
import os
import re
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import tyro

import environments
from environments import UsageError
from training.cli import JSON, fail, tyro_cli
from training.comparison import (
    CURVES,
    RANDOM,
    CurveName,
    Results,
    interval,
    iqm,
    own_curves,
    probability_of_improvement,
    solved,
)
from training.experiments import WINDOW, Task, digest, train_all
from training.files import check_writable, file_name
from training.policy import closing
from utils import plot_returns

THRESHOLDS = {"Pendulum-v0": -200.0}
"""Returns at which an environment counts as solved, where Gymnasium defines none."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train both update modes on many seeds, and compare them in a table and figures."""

    env: str = "Pendulum-v0"
    """Environment: a Gymnasium id, or module:Id-v0 to import the module that registers it."""
    env_kwargs: Annotated[dict[str, Any], JSON] = field(default_factory=dict)
    """Arguments for the environment, as a JSON object; they become part of the names of files."""
    curves: tuple[CurveName, ...] = ("step", "epoch")
    """Curves to train. Figure and table show all curves in the folder of results."""
    curve: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A curve of your own, as "name: --flags" of the epoch update, or "name: step --flags"; can be repeated."""
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
        own_curves(self.curve)
        if not self.curves:
            raise UsageError(f"--curves needs at least one of {', '.join(CURVES)}")
        check_writable("--results", self.results)
        check_writable("--img-dir", self.img_dir)


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
        label, _, flags, *_ = results.curve(curve)
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
        label, _, _, color, dashes, marker = results.curve(curve)
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
        f" {results.timesteps:,} timesteps",
        parse_math=False,
    )
    legend = figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may have a $ in it
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
    with closing(environments.make_env(config.env, None, config.env_kwargs)):  # raises if there is no such environment
        pass
    kwargs = json.dumps(config.env_kwargs, sort_keys=True)
    suffix = f"{re.sub(r'[^a-zA-Z0-9_.]+', '-', kwargs).rstrip('-')}-{digest(kwargs)}" if config.env_kwargs else ""
    results = Results(config.results, file_name(config.env) + suffix)
    if results.runs and results.timesteps != config.total_timesteps:
        raise UsageError(
            f"--total-timesteps {config.total_timesteps}: {results.paths[0]} holds runs of {results.timesteps};"
            " choose that, or another folder for --results, and one for --img-dir"
        )
    own = own_curves(config.curve)
    for name, settings in own.items():
        results.add_own(name, settings)
    curves = {name: results.curve(name) for name in (*own, *config.curves)}
    todo = {
        Task(curve.script, config.env, config.total_timesteps, curve.flags, seed, kwargs): name
        for seed in range(config.seeds)
        for name, curve in curves.items()
        if seed not in results.seeds(name)
    }
    failed = train_all(list(todo), config.workers, lambda task, score: results.keep(todo[task], task, score))
    if failed:
        print(f"{failed} of {len(todo)} runs failed; the same command tries them again", file=sys.stderr)
        return 1
    if not any(row["curve"] == RANDOM for row in results.runs):
        results.keep_random(config.env, config.total_timesteps, config.env_kwargs)
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
