"""Running statistics against NumPy's over all the data at once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils import ObservationNormalizer, RewardNormalizer, RunningMeanStd


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(0, 2**32 - 1), st.floats(0, 1e4))
def test_equals_numpy_however_the_data_is_cut(sizes, seed, offset):
    rng = np.random.default_rng(seed)
    data = rng.normal(offset, 3.0, (sum(sizes), 4))
    batches = np.split(data, np.cumsum(sizes)[:-1])
    for order in (range(len(batches)), rng.permutation(len(batches))):
        stats = RunningMeanStd(4)
        for i in order:
            stats.update(torch.tensor(batches[i]))
        assert stats.count == len(data)
        np.testing.assert_allclose(stats.mean, data.mean(axis=0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(stats.var, data.var(axis=0), rtol=1e-6, atol=1e-7)


def test_observations_come_out_standardised_and_clipped():
    data = torch.tensor(np.random.default_rng(0).normal([5.0, -300.0], [0.1, 50.0], (1000, 2)))
    normalizer = ObservationNormalizer(2)
    assert torch.equal(normalizer.normalize(data), data.float())  # nothing seen: nothing changed
    normalizer.update(data)
    normalized = normalizer.normalize(data)
    assert normalized.dtype == torch.float32
    np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normalized.std(0, correction=0), 1, atol=1e-5)
    np.testing.assert_array_equal(normalizer.normalize(torch.tensor([[1e9, -1e9]])), [[10, -10]])


def test_statistics_survive_saving():
    stats, copy = RunningMeanStd(3), RunningMeanStd(3)
    stats.update(torch.randn(50, 3))
    copy.load_state_dict(stats.state_dict())
    more = torch.randn(20, 3)
    stats.update(more)
    copy.update(more)
    assert torch.equal(stats.mean, copy.mean)
    assert torch.equal(stats.var, copy.var)


def test_statistics_go_on_learning_after_many_millions():
    """In single precision the mean would stand still: one part in 2e7 is less than a float can hold."""
    stats = RunningMeanStd(1)
    stats.count.fill_(2e7)
    stats.mean.fill_(1.0)
    for _ in range(100):
        stats.update(torch.full((1, 1), 2.0))
    np.testing.assert_allclose(stats.mean - 1, 100 / (2e7 + 100), rtol=1e-6)


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    rng, gamma = np.random.default_rng(0), 0.9
    normalizer, returns, current = RewardNormalizer(4, gamma), [], np.zeros(4)
    for steps in (1, 30, 7):
        rewards, done = rng.normal(-3, 2, (steps, 4)), rng.random((steps, 4)) < 0.1
        for r, d in zip(rewards, done, strict=True):
            current = current * gamma + r
            returns.append(current.copy())
            current[d] = 0.0
        normalizer.update_returns(torch.tensor(rewards), torch.tensor(done, dtype=torch.float32))
        scaled = normalizer.normalize(torch.tensor(rewards))
        np.testing.assert_allclose(scaled, np.clip(rewards / np.std(returns), -10, 10), rtol=1e-6)


@pytest.mark.parametrize("reward", [0.0, -1.0])
def test_the_first_rewards_of_one_environment_are_left_as_they_are(reward):
    normalizer = RewardNormalizer(1, 0.99)
    normalizer.update_returns(torch.tensor([[reward]]), torch.tensor([[0.0]]))
    assert normalizer.normalize(torch.tensor([[reward]])) == reward


def test_large_offsets_are_subtracted_before_rounding():
    """Of a time stamp, float32 keeps only steps of 128 seconds."""
    normalizer = ObservationNormalizer(2)
    stamps = torch.stack((1.7e9 + torch.arange(100.0, dtype=torch.float64), torch.arange(100.0).double()), dim=1)
    normalizer.update(stamps)
    normalized = normalizer.normalize(stamps)
    torch.testing.assert_close(normalized[:, 0], normalized[:, 1], rtol=0, atol=1e-5)
    assert normalized[:, 0].unique().numel() == 100


@pytest.mark.parametrize("value", [0.0, 0.1, 1.7e9])
def test_an_entry_that_was_always_the_same_is_zero_also_when_it_changes(value):
    """The networks have not learned anything from it; scaled, it would be at the limit."""
    normalizer = ObservationNormalizer(1)
    for _ in range(30):
        normalizer.update(torch.full((7, 1), value, dtype=torch.float64))
    assert normalizer.normalize(torch.tensor([value + 0.3], dtype=torch.float64)).item() == 0


def test_what_is_not_a_number_stays_none():
    """So that a run notices it."""
    normalizer = ObservationNormalizer(2)
    for value in (torch.nan, torch.inf):
        normalizer.update(torch.tensor([[value, 1.0]]))
        assert normalizer.normalize(torch.tensor([value, 1.0])).isnan()[0]
