"""Generalised advantage estimation, running normalisation and the plot of returns."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distributed import ALONE, Ranks


class UsageError(ValueError):
    """A person's mistake: its one line names the flag or file, what is wrong and what would be right."""


def to_tensor(numbers: Any, device: str) -> Tensor:
    """Numbers from an environment as a tensor of one type, whatever theirs, for the networks.

    To a GPU they go from pinned memory, which it reads by itself: nothing here waits for it.
    """
    tensor = torch.from_numpy(np.array(numbers, dtype=np.float32))
    if device.startswith("cuda"):
        tensor = tensor.pin_memory()
    return tensor.to(device, torch.get_default_dtype(), non_blocking=True)


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
    goes_on = (1.0 - terminated * 1.0) * (1.0 - truncated * 1.0)
    deltas = rewards + gamma * next_values * (1.0 - terminated * 1.0) - values
    advantages = discounted_sum(deltas, gamma * gae_lambda * goes_on)
    return advantages, advantages + values


def discounted_sum(terms: Any, discounts: Any) -> Any:
    """The sums y_t = x_t + d_t * y_{t+1} over the first axis, which ends with y = x.

    A parallel prefix sum (Hillis and Steele 1986, "Data parallel algorithms"): sums of two steps from those of one, of
    four from those of two and so on, so that T steps take log2(T) operations on all of them instead of T on one each.

    Args:
        terms, discounts: x and d, NumPy arrays or tensors of shape (T, ...).
    """
    sums, discounts, span = terms * 1.0, discounts * 1.0, 1
    while span < len(sums):
        sums[:-span] += discounts[:-span] * sums[span:]
        discounts[:-span] = discounts[:-span] * discounts[span:]
        span *= 2
    return sums


def hold(noise: Tensor, probability: float) -> Tensor:
    """Repeat in each step, with some probability, the noise of the step before, as it stands there.

    Each row keeps its distribution, so that an action still has the log-probability that the policy gives it; but
    actions in a row agree more often, and so get somewhere. Random actions that forget each other cancel out.
    Source: Hollenstein et al. 2024, "Colored noise in PPO" (arXiv 2312.11091), of which this is the simplest kind.

    Args:
        noise: of T steps in N environments, (T, N, ...).
        probability: of holding, in [0, 1].
    """
    steps, num_envs = noise.shape[:2]
    held = torch.rand(steps, num_envs, device=noise.device) < probability
    steps_drawn = torch.arange(steps, device=noise.device)[:, None].where(~held, 0).cummax(0).values
    return noise[steps_drawn, torch.arange(num_envs, device=noise.device)]


class RunningMeanStd(nn.Module):
    """Mean and variance of all vectors seen so far, exact whatever the sizes and order of the batches.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    Args:
        size: entries of a vector, D.
        ranks: see a part of each batch each; the statistics are of all of it, the same on every rank.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int = 1, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.ranks = ranks
        # In double precision: after a million observations, one more moves the mean by less than a float can hold.
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))

    def update(self, batch: Tensor) -> None:
        """Take in a batch of shape (B, D), the same B on every rank."""
        batch, count = batch.double(), len(batch) * self.ranks.size
        total = self.count + count
        mean = self.ranks.average(batch.mean(0))
        delta = mean - self.mean
        squares = self.var * self.count + self.ranks.average((batch - mean).square().sum(0)) * self.ranks.size
        self.var.copy_((squares + delta.square() * (self.count * count / total)) / total)
        self.mean.add_(delta * count / total)
        self.count.copy_(total)


class ObservationNormalizer(RunningMeanStd):
    """Brings each entry of an observation to mean 0 and variance 1 over all that was seen, clipped at 10."""

    def forward(self, observations: Tensor) -> Tensor:
        """Normalise observations (..., D); as they are, if none was ever seen. In the type that the networks take."""
        normalized = ((observations - self.mean) / (self.var + 1e-8).sqrt()).clamp(-10.0, 10.0)
        return torch.where(self.count > 0, normalized, observations).to(torch.get_default_dtype())


class RewardNormalizer(RunningMeanStd):
    """Divides rewards by the running standard deviation of the discounted return, so that values are near 1 in size.

    The mean stays: shifting rewards would change which policy is best where episodes can end early.
    Source: Engstrom et al. 2020, "Implementation matters in deep policy gradients", appendix A.2.

    Args:
        num_envs: environments whose rewards arrive together, N, over all ranks.
        gamma: the discount of the return.
        ranks: have a share of the environments each.
    """

    returns: Tensor

    def __init__(self, num_envs: int, gamma: float, ranks: Ranks = ALONE) -> None:
        super().__init__(ranks=ranks)
        self.gamma = gamma
        self.register_buffer("returns", torch.zeros(num_envs, dtype=torch.float64))

    def forward(self, rewards: Tensor, done: Tensor) -> Tensor:
        """Take in the rewards of T steps (T, N), of which those `done` (T, N) ended an episode; return them scaled."""
        goes_on = 1.0 - done.double()
        first = rewards[:1].double() + self.gamma * self.returns[self.ranks.share(len(self.returns))]
        gains = torch.cat((first, rewards[1:].double()))
        returns = discounted_sum(gains.flip(0), self.gamma * goes_on.roll(1, 0).flip(0)).flip(0)
        self.returns.copy_(self.ranks.join(returns[-1] * goes_on[-1]))
        self.update(returns.view(-1, 1))
        scale = torch.where(self.var == 0, 1.0, self.var.sqrt())  # nothing to go by before returns differ
        return (rewards / scale).clamp(-10.0, 10.0).to(torch.get_default_dtype())


class AdvantageNormalizer(nn.Module):
    """Centres each batch of advantages, and divides them by their running standard deviation.

    Divided by the batch's own, as is common, the advantages of a batch in which nothing happened would be blown up to
    the size of those of a discovery, and the noise in them would drive the actor.

    Args:
        center: whether to take each batch's mean away.
        ranks: have a part of the batch each.
    """

    var: Tensor
    momentum = 0.95

    def __init__(self, center: bool = True, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.center = center
        self.ranks = ranks
        self.register_buffer("var", torch.tensor(torch.nan))

    def forward(self, advantages: Tensor) -> Tensor:
        """Take in a batch of advantages, of any shape, and return them normalised."""
        mean = self.ranks.average(advantages.mean())
        spread = advantages.var(correction=0) + (advantages.mean() - mean).square()  # of this rank's around all ranks'
        var = self.ranks.average(spread).to(self.var.dtype)
        self.var.copy_(torch.where(self.var.isnan(), var, var.lerp(self.var, self.momentum)))
        centered = advantages - mean if self.center else advantages
        return centered / (self.var.sqrt() + 1e-8)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - Var[returns - values] / Var[returns]: 1 is a perfect critic, 0 one that says the same of every state."""
    variance = returns.var(correction=0)
    return torch.where(variance == 0, torch.nan, 1 - (returns - values).var(correction=0) / variance)


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


def plot_maps(
    path: Path, x: np.ndarray, y: np.ndarray, names: Sequence[str], maps: Mapping[str, np.ndarray], title: str
) -> None:
    """Draw numbers over a plane, a panel for each entry of `maps`, as a PNG.

    Args:
        path: the picture to write; its folder is made.
        x, y: coordinates of columns and rows, (X,) and (Y,).
        names: what x and y are.
        maps: by title, (Y, X); whole numbers are drawn as choices, each in a colour of its own.
        title: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(maps), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, numbers) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        choices = np.unique(numbers) if np.issubdtype(numbers.dtype, np.integer) else None
        if choices is None:
            mesh = axes.pcolormesh(x, y, numbers, cmap="viridis", shading="auto")
            figure.colorbar(mesh, ax=axes)
        else:
            low, high = choices.min() - 0.5, choices.max() + 0.5
            colours = ListedColormap([f"C{i}" for i in range(round(high - low))])
            mesh = axes.pcolormesh(x, y, numbers, cmap=colours, vmin=low, vmax=high, shading="auto")
            figure.colorbar(mesh, ax=axes, ticks=range(choices.min(), choices.max() + 1))
        axes.set(xlabel=names[0], ylabel=names[1], title=name)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
