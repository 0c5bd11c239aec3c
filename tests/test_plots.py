"""Plots of returns: what they show, as data."""

import numpy as np
import pytest

from utils import plot_returns, running_mean


def test_the_running_mean_is_over_timesteps():
    rng = np.random.default_rng(0)
    timesteps, returns = np.sort(rng.integers(0, 1000, 300)), rng.normal(size=300)
    points, means = running_mean(timesteps, returns, window=70)
    assert points.tolist() == sorted(set(timesteps.tolist()))
    for point, mean in zip(points, means, strict=True):
        assert mean == pytest.approx(returns[(timesteps > point - 70) & (timesteps <= point)].mean())


def test_episodes_that_end_together_give_one_point():
    """As in a vector of environments with a time limit: a mean over episodes in their order would be a staircase."""
    timesteps = np.repeat(np.arange(3200, 100_000, 3200), 16)
    points, means = running_mean(timesteps, np.arange(len(timesteps), dtype=float), window=5000)
    assert len(points) == len(np.unique(timesteps))
    assert len(np.unique(np.diff(means[2:]).round(6))) == 1  # a straight line stays one


@pytest.mark.parametrize(("episodes", "title"), [(0, "title"), (1, "50$%$"), (5, r"$\frac$")])
def test_a_run_of_few_episodes_or_a_name_with_signs_is_drawn(tmp_path, episodes, title):
    plot_returns(tmp_path / "new" / "plot.png", [200] * episodes, [1.0] * episodes, title)
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
