"""Generalized advantage estimation, sampling noise, divergence of policies, running normalization and plots."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent

# --- Generalized advantage estimation --------------------------------------------------------------------------------


def gae(
    rewards: Any, values: Any, next_values: Any, terminated: Any, truncated: Any, gamma: float, gae_lambda: float
) -> tuple[Any, Any]:
    """Generalized advantage estimation over a batch of T steps in N environments.

        delta_t = r_t + gamma * V(s'_t) * (1 - terminated_t) - V(s_t)
        A_t     = delta_t + gamma * lambda * (1 - done_t) * A_{t+1},   done = terminated or truncated

    Terminal states do not bootstrap; truncated ones bootstrap from V(s'). The recursion stops at the end of an episode
    and at the end of the batch, where V(s') stands for all later rewards. lambda = 0 gives the TD error, lambda = 1 the
    discounted return minus V(s).
    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16.

    Args:
        rewards, values, next_values: r, V(s) and V(s'), NumPy arrays or tensors of shape (T, N). s' is the successor of
            s, never the first state of the next episode.
        terminated, truncated: whether the episode terminated or was truncated at s', (T, N).
        gamma, gae_lambda: in [0, 1].

    Returns:
        Advantages A and critic targets A + V, both (T, N).
    """
    not_terminated = 1.0 - terminated * 1.0  # booleans as numbers
    not_done = not_terminated * (1.0 - truncated * 1.0)
    deltas = rewards + gamma * next_values * not_terminated - values
    advantages = discounted_sum(deltas, gamma * gae_lambda * not_done)
    return advantages, advantages + values


def discounted_sum(terms: Any, discounts: Any) -> Any:
    """The sums y_t = x_t + d_t * y_{t+1} over the first axis, with y_{T-1} = x_{T-1}.

    Computed as a parallel prefix sum (Hillis and Steele 1986, "Data parallel algorithms"): sums over two steps, then
    over four, and so on. T steps take log2(T) vector operations instead of T.

    Args:
        terms, discounts: x and d, NumPy arrays or tensors of shape (T, ...).
    """
    sums, discounts, span = terms * 1.0, discounts * 1.0, 1
    while span < len(sums):  # sums[t] is over `span` terms, discounts[t] the product of their discounts
        sums[:-span] += discounts[:-span] * sums[span:]
        discounts[:-span] = discounts[:-span] * discounts[span:]
        span *= 2
    return sums


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - Var[returns - values] / Var[returns], for tensors of any shape: 1 if all errors are equal, 0 for a constant
    critic.

    NaN if all returns are equal.
    """
    variance = returns.var(correction=0)
    return torch.where(variance == 0, torch.nan, 1 - (returns - values).var(correction=0) / variance)


# --- Policies --------------------------------------------------------------------------------------------------------


def repeat_noise(noise: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Repeat, with some probability, the sampling noise of the previous step, so that consecutive actions agree.

    The effects of independent random actions tend to cancel; correlated ones explore further (temporally correlated
    noise: Hollenstein et al. 2024, arXiv 2312.11091). Each step's noise has the same distribution as before. But a
    state depends on the noise that led to it, so given the state, a repeated action does not follow the policy
    exactly: the batch is off-policy while the probability is above 0.

    Args:
        noise: of T steps in N environments, (T, N, ...).
        probability: of repeating the noise of the previous step, in [0, 1]; the first step always has its own.
        generator: for the choice; None for PyTorch's global one.
    """
    steps, num_envs = noise.shape[:2]
    repeated = torch.rand(steps, num_envs, device=noise.device, generator=generator) < probability
    # For each step, the last one with noise of its own.
    source_steps = torch.arange(steps, device=noise.device)[:, None].where(~repeated, 0).cummax(0).values
    return noise[source_steps, torch.arange(num_envs, device=noise.device)]


def kl_divergence(old: Independent, new: Independent) -> Tensor:
    """KL(old || new) of two categorical or two normal distributions, (...), at least 0.

    For categorical ones, that of torch.distributions is infinite where a new probability underflows to 0, though its
    logit is finite; for normal ones, torch.compile cannot trace it.
    """
    p, q = old.base_dist, new.base_dist
    if isinstance(p, Categorical):
        divergences = torch.where(p.probs > 0, p.probs * (p.logits - q.logits), 0.0).sum(-1)
    else:
        variance_ratio = (p.stddev / q.stddev).square()
        distance = ((p.mean - q.mean) / q.stddev).square()
        divergences = 0.5 * (variance_ratio + distance - 1 - variance_ratio.log())
    return divergences.sum(-1).clamp(min=0.0)


# --- Running normalization -------------------------------------------------------------------------------------------


class SingleProcess:
    """The collective operations that the normalizers use, for the usual case of one process.

    In data-parallel training, the normalizers are given an object that communicates, `training.ranks.Ranks`.
    """

    rank, world_size = 0, 1

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        return tensor

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, concatenated along the first axis."""
        return tensor

    def local_slice(self, count: int) -> slice:
        """The slice of this process, if `count` items, a multiple of the processes, are divided among them."""
        local = count // self.world_size
        return slice(self.rank * local, (self.rank + 1) * local)


SINGLE_PROCESS = SingleProcess()


class RunningMeanStd(nn.Module):
    """Mean and variance of all vectors so far, each with the same weight; exact for batches of any sizes and order.

    Source: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

    Args:
        size: entries of a vector, D.
        processes: each sees a part of every batch; the statistics are those of the whole batch.

    Attributes:
        mean, var: (D,).
        count: number of vectors, (1,).
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, size: int = 1, processes: SingleProcess = SINGLE_PROCESS) -> None:
        super().__init__()
        self.processes = processes
        # Double precision: a count in float32 stops at 2^24, and rounding errors would add up in long runs.
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("var", torch.ones(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.float64))

    def update(self, batch: Tensor) -> None:
        """Update the statistics with a batch (B, D), the same B in every process."""
        batch, count = batch.double(), len(batch) * self.processes.world_size
        total = self.count + count
        mean = self.processes.all_reduce_mean(batch.mean(0))
        delta = mean - self.mean
        squares = self.processes.all_reduce_mean((batch - mean).square().sum(0)) * self.processes.world_size
        squares = self.var * self.count + squares
        self.var.copy_((squares + delta.square() * (self.count * count / total)) / total)
        self.mean.add_(delta * count / total)
        self.count.copy_(total)


class ObservationNormalizer(RunningMeanStd):
    """Scales each number in an observation to mean 0 and variance 1 over all observations, clipped to [-10, 10].

    Args:
        size: entries of an observation, D.
        processes: each sees a part of every batch.
        unchanged: so many entries at the beginning, of images, and at the end, of a mask of invalid actions, are not
            changed.
    """

    def __init__(
        self, size: int, processes: SingleProcess = SINGLE_PROCESS, unchanged: tuple[int, int] = (0, 0)
    ) -> None:
        super().__init__(size - unchanged[0], processes)
        self.images, self.masked = unchanged

    def update(self, batch: Tensor) -> None:
        """Update the statistics with a batch of observations (B, D), the same B in every process."""
        if batch.shape[-1] > self.images:
            super().update(batch[:, self.images :])

    def normalize(self, observations: Tensor) -> Tensor:
        """Normalized observations (..., D), as the default float type; unchanged before the first update, if below 1e6.

        The mean is subtracted in double precision. An entry that has always been the same, but for rounding, is 0.
        Observations that are nothing but images keep their type.
        """
        images, numbers = observations[..., : self.images], observations[..., self.images :]
        if not numbers.shape[-1]:
            return observations
        normalized = ((numbers - self.mean) / (self.var + 1e-8).sqrt()).clamp(-10.0, 10.0)
        normalized = torch.where(self.var <= 1e-20 * self.mean.square(), 0.0, normalized)  # not NaN
        raw = numbers.double().clamp(-1e6, 1e6)  # larger ones would overflow in the networks
        normalized = torch.where(self.count > 0, normalized, raw)
        if self.masked:
            normalized = torch.cat((normalized[..., : -self.masked], numbers[..., -self.masked :]), dim=-1)
        if self.images:
            normalized = torch.cat((images, normalized), dim=-1)
        return normalized.to(torch.get_default_dtype())


class RewardNormalizer(RunningMeanStd):
    """Divides rewards by the running standard deviation of their discounted sum, so that values are of order 1.

    The discounted sum is over the past rewards of an episode: R_t = r_t + gamma * R_{t-1}. The mean is not subtracted:
    shifting rewards changes the optimal policy where episodes can end early. Source: Engstrom et al. 2020
    (arXiv 2005.12729), "Implementation matters in deep policy gradients", appendix A.2.

    Args:
        num_envs: number of environments, N, over all processes.
        gamma: discount factor.
        processes: each has an equal share of the environments.

    Attributes:
        returns: discounted sums of the unfinished episodes, (N,).
    """

    returns: Tensor

    def __init__(self, num_envs: int, gamma: float, processes: SingleProcess = SINGLE_PROCESS) -> None:
        super().__init__(processes=processes)
        self.gamma = gamma
        self.register_buffer("returns", torch.zeros(num_envs, dtype=torch.float64))

    def update_returns(self, rewards: Tensor, done: Tensor) -> None:
        """Update the statistics with T steps of this process's environments.

        Args:
            rewards: (T, N).
            done: 1 where the step ended an episode, (T, N).
        """
        # R_t = r_t + gamma * not_done_{t-1} * R_{t-1} is `discounted_sum` on the reversed time axis.
        not_done = 1.0 - done.double()
        first = rewards[:1].double() + self.gamma * self.returns[self.processes.local_slice(len(self.returns))]
        terms = torch.cat((first, rewards[1:].double()))
        returns = discounted_sum(terms.flip(0), self.gamma * not_done.roll(1, 0).flip(0)).flip(0)
        self.returns.copy_(self.processes.all_gather(returns[-1] * not_done[-1]))
        self.update(returns.view(-1, 1))

    def normalize(self, rewards: Tensor) -> Tensor:
        """Rewards (...) divided by the standard deviation, or by 1 while that is 0, and clipped to [-10, 10]."""
        scale = torch.where(self.var == 0, 1.0, self.var.sqrt())
        return (rewards / scale).clamp(-10.0, 10.0).to(torch.get_default_dtype())


# --- Plots -----------------------------------------------------------------------------------------------------------


def running_mean(timesteps: np.ndarray, returns: np.ndarray, window: float) -> tuple[np.ndarray, np.ndarray]:
    """The mean return of the episodes that ended in the last `window` timesteps, at each timestep where one ended.

    Args:
        timesteps, returns: of the episodes, in order, (E,).
        window: in timesteps.

    Returns:
        Timesteps and means, (M,): one for each distinct timestep.
    """
    points, counts = np.unique(timesteps, return_counts=True)
    sums = np.concatenate(([0.0], np.cumsum(returns, dtype=np.float64)))
    last = counts.cumsum()
    first = np.searchsorted(timesteps, points - window, side="right")
    return points, (sums[last] - sums[first]) / (last - first)


def plot_returns(path: Path, timesteps: Sequence[float], returns: Sequence[float], title: str) -> None:
    """Plot the return of each training episode against timesteps, with a running mean, as a PNG.

    Args:
        path: of the picture; its directory is created.
        timesteps, returns: when each episode ended, in order, and the sum of the environment's own rewards, (E,).
        title: of the picture.
    """
    from matplotlib.figure import Figure  # takes a second to import: only where a plot is drawn

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(timesteps, returns, s=6, alpha=0.35, linewidths=0, color="#56B4E9", label="episode")
    if returns:
        window = max(timesteps[-1] / 20, 1)  # 5% of the run
        points, means = running_mean(np.array(timesteps), np.array(returns), window)
        axes.plot(points, means, color="#0072B2", label=f"mean of the last {window:,.0f} timesteps")
        axes.legend(loc="lower right")
    axes.set(xlabel="timesteps", ylabel="return of an episode")
    axes.set_title(title, parse_math=False)  # a name may have a $ in it
    axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def plot_maps(
    path: Path, x: np.ndarray, y: np.ndarray, names: Sequence[str], maps: Mapping[str, np.ndarray], title: str
) -> None:
    """Plot functions of two variables as heat maps, one panel for each entry of `maps`, as a PNG.

    Args:
        path: of the picture; its directory is created.
        x, y: coordinates of columns and rows, (X,) and (Y,).
        names: labels of the x and y axes.
        maps: by title, (Y, X); integers are drawn as categories, each in its own color.
        title: of the picture.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(maps), 4.2), layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        choices = np.unique(values) if np.issubdtype(values.dtype, np.integer) else None
        if choices is None:
            mesh = axes.pcolormesh(x, y, values, cmap="viridis", shading="auto")
            figure.colorbar(mesh, ax=axes)
        else:
            low, high = choices.min() - 0.5, choices.max() + 0.5
            colors = ListedColormap([f"C{i}" for i in range(round(high - low))])
            mesh = axes.pcolormesh(x, y, values, cmap=colors, vmin=low, vmax=high, shading="auto")
            figure.colorbar(mesh, ax=axes, ticks=range(choices.min(), choices.max() + 1))
        axes.set_xlabel(names[0], parse_math=False)
        axes.set_ylabel(names[1], parse_math=False)
        axes.set_title(name, parse_math=False)
    figure.suptitle(title, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
