"""Generalised advantage estimation, running normalisation and the plot of returns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class UsageError(ValueError):
    """A person's mistake: its one line names the flag or file, what is wrong and what would be right."""


def gae(
    rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any, gamma: float, gae_lambda: float
) -> tuple[Any, Any]:
    """Generalised advantage estimation over a batch of T steps in N environments.

        delta_t = r_t + gamma * V(s'_t) * (1 - terminated_t) - V(s_t)
        A_t     = delta_t + gamma * lambda * (1 - done_t) * A_{t+1},   done = terminated or truncated

    A terminated state is worth nothing more; a truncated one still is, so its value counts in delta. Neither lets the
    next episode's advantages in. lambda = 0 leaves the TD error alone, lambda = 1 the return minus V.
    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16.

    Args:
        rewards, values, next_values: r, V(s), V(s'), NumPy arrays or tensors of shape (T, N). s' is the state that
            followed, never the first one of the next episode.
        terminated, truncated: whether the episode ended at s', and why, (T, N).
        gamma, gae_lambda: in [0, 1].

    Returns:
        Advantages A and the critic's targets A + V, both (T, N).
    """
    deltas = rewards + gamma * next_values * (1.0 - terminated * 1.0) - values
    goes_on = (1.0 - terminated * 1.0) * (1.0 - truncated * 1.0)
    advantages = deltas * 1.0
    for t in range(len(advantages) - 2, -1, -1):
        advantages[t] += gamma * gae_lambda * (goes_on[t] * advantages[t + 1])
    return advantages, advantages + values


class RunningMeanStd:
    """Mean and variance of all vectors seen so far, exact whatever the sizes and order of the batches.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.mean = np.zeros(shape)
        self.var = np.ones(shape)
        self.count = 0

    def update(self, batch: np.ndarray) -> None:
        """Take in a batch of shape (B, *shape)."""
        size = len(batch)
        total = self.count + size
        mean, var = (batch.mean(axis=0), batch.var(axis=0)) if size > 1 else (batch[0], 0.0)
        delta = mean - self.mean
        squares = self.var * self.count + var * size + delta**2 * (self.count * size / total)
        self.mean = self.mean + delta * size / total
        self.var = squares / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, which a checkpoint can hold without pickled code."""
        return {"mean": self.mean.tolist(), "var": self.var.tolist(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.var = np.array(state["mean"]), np.array(state["var"])
        self.count = int(state["count"])


class ObservationNormalizer(RunningMeanStd):
    """Brings each entry of an observation to mean 0 and variance 1 over all that was seen, clipped at 10."""

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """Normalise observations (..., D); as they are, if none was ever seen. As float32, what the networks take."""
        if self.count == 0:
            return observations.astype(np.float32)
        normalized = (observations - self.mean) / np.sqrt(self.var + 1e-8)
        return normalized.clip(-10.0, 10.0).astype(np.float32)


class RewardNormalizer:
    """Divides rewards by the running standard deviation of the discounted return, so that values are near 1 in size.

    The mean stays: shifting rewards would change which policy is best where episodes can end early.
    Source: Engstrom et al. 2020, "Implementation matters in deep policy gradients", appendix A.2.

    Args:
        num_envs: environments whose rewards arrive together.
        gamma: the discount of the return.
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        self.gamma = gamma
        self.returns = np.zeros(num_envs)
        self.stats = RunningMeanStd()

    def __call__(self, rewards: np.ndarray, done: np.ndarray) -> np.ndarray:
        """Take in the rewards of T steps (T, N), of which those `done` (T, N) ended an episode; return them scaled."""
        returns = np.empty(rewards.shape)
        for t in range(len(rewards)):
            self.returns = self.returns * self.gamma + rewards[t]
            returns[t] = self.returns
            self.returns[done[t]] = 0.0
        self.stats.update(returns.ravel())
        scale = np.sqrt(self.stats.var) if self.stats.var > 0 else 1.0  # nothing to go by before returns differ
        return np.clip(rewards / scale, -10.0, 10.0)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, which a checkpoint can hold without pickled code."""
        return {"returns": self.returns.tolist(), "stats": self.stats.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns = np.array(state["returns"])
        self.stats.load_state_dict(state["stats"])


class AdvantageNormalizer:
    """Centres each batch of advantages, and divides them by their running standard deviation.

    Divided by the batch's own, as is common, the advantages of a batch in which nothing happened would be blown up to
    the size of those of a discovery, and the noise in them would drive the actor.
    """

    momentum = 0.95

    def __init__(self) -> None:
        self.var: float | None = None

    def __call__(self, advantages: np.ndarray) -> np.ndarray:
        """Take in a batch of advantages, of any shape, and return them normalised."""
        var = float(advantages.var())
        self.var = var if self.var is None else self.momentum * self.var + (1 - self.momentum) * var
        return (advantages - advantages.mean()) / (self.var**0.5 + 1e-8)

    def state_dict(self) -> dict[str, Any]:
        return {"var": self.var}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.var = state["var"]


def explained_variance(values: np.ndarray, returns: np.ndarray) -> float:
    """1 - Var[returns - values] / Var[returns]: 1 is a perfect critic, 0 one that says the same of every state."""
    variance = returns.var()
    return float("nan") if variance == 0 else float(1 - (returns - values).var() / variance)


def plot_returns(path: Path, timesteps: Sequence[float], returns: Sequence[float], title: str) -> None:
    """Draw the return of every episode over the timesteps trained, with its running mean, as a PNG.

    Args:
        path: the picture to write; its folder is made.
        timesteps, returns: where each episode ended and the environment's own reward summed over it.
        title: of the picture.
    """
    # Matplotlib takes a second to import: not before it is needed.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.scatter(timesteps, returns, s=6, alpha=0.35, linewidths=0, color="#56B4E9", label="episode")
    if returns:
        window = min(len(returns), max(10, len(returns) // 20))
        mean = np.convolve(returns, np.ones(window) / window, mode="valid")
        axes.plot(timesteps[window - 1 :], mean, color="#0072B2", label=f"mean of {window} episodes")
        axes.legend(loc="lower right")
    axes.set(xlabel="timesteps", ylabel="return of an episode", title=title)
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
