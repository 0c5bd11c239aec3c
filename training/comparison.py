"""What is known of a comparison: its curves, the CSV files of their runs, and the statistics over seeds.

The statistics are those of Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice"
(arXiv 2108.13264).
"""

import csv
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from scipy import stats

import environments
from environments import UsageError
from training.experiments import EPISODES, POINTS, Task, grid, learning_curve, read_csv, write_csv
from training.policy import Policy, closing, evaluate
from training.provenance import commit


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
OWN_STYLES = [("#000000", "-", "P"), ("#999999", "--", "*"), ("#8C564B", "-.", "<"), ("#7F3C8D", ":", ">")]
"""Color, dashes and marker of curves of a person's own, in their order."""
SCRIPTS = ("step", "epoch")
FIXED = {"--env", "--env-kwargs", "--env-fn", "--seed", "--total-timesteps", "--run-dir", "--resume", "--img-dir"}
FIXED |= {"--quiet", "--help", "-h"}
"""Flags that a curve cannot have."""
RANDOM = "random"
"""In place of a curve's name: a policy that acts at random."""

COLUMNS = [
    ["curve", "seed", "timesteps", "mean_return", "std_return", "min_return", "seconds", "commit", "settings"],
    ["curve", "seed", "timestep", "seconds", "return"],
    ["curve", "timestep", "return"],
]
"""Columns of the three files."""


def own_curves(texts: Sequence[str]) -> dict[str, str]:
    """The settings, as `results/` has them, by the names of curves given as `name: --flags` or `name: step --flags`.

    Raises:
        UsageError: one is given in another way, its name is taken, or it has the settings of another one.
    """
    own: dict[str, str] = {}
    taken = {f"{curve.script} {curve.flags}".strip(): name for name, curve in CURVES.items()}
    for text in texts:
        name, colon, flags = (part.strip() for part in text.partition(":"))
        try:
            script, *others = shlex.split(flags) or [""]
        except ValueError as error:  # a quote that is not closed
            raise UsageError(f'--curve "{text}": {error}') from error
        if script not in SCRIPTS:
            script, others = "epoch", [script, *others]
        if not colon or not others or not others[0].startswith("--"):
            raise UsageError(f'--curve "{text}" must be "name: --flags" or "name: step --flags"')
        if not re.fullmatch(r"(?!_)[\w .,+=()%/<>-]+", name):
            raise UsageError(f'--curve "{text}": a name has letters, digits, spaces, and . , + - = ( ) % / < > only')
        given = {other.partition("=")[0].replace("_", "-") for other in others}
        if fixed := sorted(given & FIXED):
            raise UsageError(f'--curve "{text}": compare.py sets {fixed[0]} for all curves; remove it')
        if name in (*CURVES, *own, RANDOM):
            raise UsageError(f'--curve "{text}": {name} is the name of another curve; choose one of your own')
        settings = " ".join([script, *map(shlex.quote, others)])
        if same := taken.get(settings):
            raise UsageError(f'--curve "{text}" has the settings of {same}; remove one of them')
        own[name], taken[settings] = settings, name
    return own


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
        self.own: dict[str, str] = {}
        """Curves of a person's own: their settings by their names."""
        for row in self.runs:
            if row["curve"] not in (*CURVES, RANDOM) and row["settings"].partition(" ")[0] in SCRIPTS:
                self.own.setdefault(row["curve"], row["settings"])
        for path, rows in zip(self.paths, self.tables, strict=True):
            for line, row in enumerate(rows, 2):
                try:
                    for column, value in row.items():
                        if column not in ("curve", "commit", "settings"):
                            (int if column in ("seed", "timestep", "timesteps") else float)(value)
                except ValueError as error:
                    raise UsageError(f"{path}, line {line}: {error}; put the file back as it was") from error
                if row["curve"] not in (*CURVES, *self.own, RANDOM):
                    names = ", ".join([*CURVES, *self.own])
                    raise UsageError(f"{path}, line {line}: {row['curve']} is none of {names}")
        if len({row["timesteps"] for row in self.runs}) > 1:
            raise UsageError(f"{self.paths[0]} holds runs of different timesteps; put it back as it was")

    @property
    def curves(self) -> list[str]:
        """The names of the curves with results."""
        there = {row["curve"] for row in self.runs}
        return [name for name in (*CURVES, *self.own) if name in there]

    def curve(self, name: str) -> Curve:
        """The curve of a name; those of a person's own have the styles that are left."""
        if name in CURVES:
            return CURVES[name]
        script, _, flags = self.own[name].partition(" ")
        style = OWN_STYLES[list(self.own).index(name) % len(OWN_STYLES)]
        return Curve(name, script, flags, *style)

    def add_own(self, name: str, settings: str) -> None:
        """Add a curve of a person's own; raises a `UsageError` if there are runs of it with other settings."""
        if self.own.setdefault(name, settings) != settings:
            raise UsageError(f'--curve "{name}": {self.paths[0]} has it with {self.own[name]}; choose another name')

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
                which = f'--curve "{curve}: {self.own[curve]}"' if curve in self.own else f"--curves {curve}"
                command = f"compare.py --env {self.name} {which} --total-timesteps {self.timesteps}"
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
        self._add(curve, task.seed, task.timesteps, score, points[-1][1], self.own.get(curve, task.flags))

    def keep_random(self, env: str, timesteps: int, env_kwargs: Mapping[str, Any]) -> None:
        """Add the random policy."""
        with closing(environments.make_env(env, None, env_kwargs)) as made:
            policy = RandomPolicy(made)
        score = evaluate(policy, env, episodes=EPISODES, seed=0, env_kwargs=env_kwargs)
        self._add(RANDOM, 0, timesteps, score | {"commit": commit()}, 0.0, "")

    def _add(self, curve: str, seed: int, timesteps: int, score: Mapping[str, Any], seconds: float, flags: str) -> None:
        values = [curve, seed, timesteps, *(f"{score[name]:.2f}" for name in COLUMNS[0][3:6])]
        values += [f"{seconds:.1f}", score["commit"], flags]
        self.runs.append(dict(zip(COLUMNS[0], map(str, values), strict=True)))
        self._write()

    def _write(self) -> None:
        order = [*CURVES, *self.own, RANDOM]
        # The runs last: a row of theirs promises that the other files are complete.
        for path, columns, rows in list(zip(self.paths, COLUMNS, self.tables, strict=True))[::-1]:
            rows.sort(key=lambda row: (order.index(row["curve"]), int(row.get("seed", 0))))
            write_csv(path, columns, rows)


class RandomPolicy(Policy):
    """Acts at random."""

    device = torch.device("cpu")

    def __init__(self, env: gym.Env) -> None:
        self.action_map, self.observation_map = environments.make_maps(env)
        self.space = env.action_space
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
