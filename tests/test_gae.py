"""Generalized advantage estimation against its definition, summed term by term."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils import discounted_sum, gae


def direct_sum(rewards, values, next_values, terminated, truncated, gamma, gae_lambda):
    """A_t = sum over l of (gamma lambda)^l delta_{t+l}, as far as the episode or the batch goes: O(T^2)."""
    steps, num_envs = rewards.shape
    advantages = np.zeros_like(rewards)
    for n in range(num_envs):
        for t in range(steps):
            weight = 1.0
            for k in range(t, steps):
                bootstrap = 0.0 if terminated[k, n] else gamma * next_values[k, n]
                advantages[t, n] += weight * (rewards[k, n] + bootstrap - values[k, n])
                weight *= gamma * gae_lambda
                if terminated[k, n] or truncated[k, n]:
                    break
    return advantages


def random_batch(seed, steps, num_envs):
    rng = np.random.default_rng(seed)
    rewards, values, next_values = rng.normal(size=(3, steps, num_envs))
    terminated, truncated = rng.random((2, steps, num_envs)) < 0.15
    return rewards, values, next_values, terminated, truncated


@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 12),
    num_envs=st.integers(1, 4),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
)
def test_equals_the_definition(seed, steps, num_envs, gamma, gae_lambda):
    batch = random_batch(seed, steps, num_envs)
    advantages, returns = gae(*batch, gamma, gae_lambda)
    np.testing.assert_allclose(advantages, direct_sum(*batch, gamma, gae_lambda), atol=1e-10)
    np.testing.assert_allclose(returns, advantages + batch[1], atol=1e-12)


def column(*values):
    return np.array(values, dtype=float)[:, None]


def flags(*values):
    return np.array(values, dtype=bool)[:, None]


@pytest.mark.parametrize(
    ("terminated", "truncated", "expected"),
    [
        # With gamma = lambda = 1/2 and all values 1 but V(s') of the last step, which is 3:
        # delta = (0.5, 1.5, 2.5 + ...) for rewards (1, 2, 3) while nothing ends.
        pytest.param((0, 0, 0), (0, 0, 0), (0.5 + 0.375 + 0.21875, 1.5 + 0.875, 3.5), id="goes on"),
        pytest.param((0, 0, 1), (0, 0, 0), (0.5 + 0.375 + 0.125, 1.5 + 0.5, 2.0), id="terminated"),
        pytest.param((0, 0, 0), (0, 0, 1), (0.5 + 0.375 + 0.21875, 1.5 + 0.875, 3.5), id="truncated"),
        pytest.param((0, 1, 0), (0, 0, 0), (0.5 + 0.25, 1.0, 3.5), id="terminated in the middle"),
        pytest.param((0, 0, 0), (0, 1, 0), (0.5 + 0.375, 1.5, 3.5), id="truncated in the middle"),
        pytest.param((1, 0, 0), (0, 1, 0), (0.0, 1.5, 3.5), id="both in one batch"),
        pytest.param((0, 0, 1), (0, 0, 1), (0.5 + 0.375 + 0.125, 1.5 + 0.5, 2.0), id="both at once"),
    ],
)
def test_hand_made_cases(terminated, truncated, expected):
    rewards, values, next_values = column(1, 2, 3), column(1, 1, 1), column(1, 1, 3)
    advantages, _ = gae(rewards, values, next_values, flags(*terminated), flags(*truncated), 0.5, 0.5)
    np.testing.assert_allclose(advantages, column(*expected))


def test_lambda_0_is_the_td_error():
    rewards, values, next_values, terminated, truncated = random_batch(0, 20, 3)
    advantages, _ = gae(rewards, values, next_values, terminated, truncated, 0.9, 0.0)
    np.testing.assert_allclose(advantages, rewards + 0.9 * next_values * ~terminated - values)


def test_lambda_1_is_the_return_minus_the_value():
    rewards, values = column(1, 2, 3), column(0.1, 0.2, 0.3)
    advantages, returns = gae(rewards, values, column(0.2, 0.3, 7), flags(0, 0, 1), flags(0, 0, 0), 0.9, 1.0)
    np.testing.assert_allclose(returns, column(1 + 0.9 * 2 + 0.81 * 3, 2 + 0.9 * 3, 3))
    np.testing.assert_allclose(advantages, returns - values)


def test_an_episode_does_not_see_the_next_one():
    rewards, values, next_values, _, _ = random_batch(1, 10, 2)
    for end in ("terminated", "truncated"):
        ends = {"terminated": np.zeros((10, 2), bool), "truncated": np.zeros((10, 2), bool)}
        ends[end][4] = True
        before, _ = gae(rewards, values, next_values, **ends, gamma=0.99, gae_lambda=0.95)
        changed, changed_values = rewards.copy(), values.copy()
        changed[5:] += 100.0
        changed_values[5:] -= 100.0
        after, _ = gae(changed, changed_values, next_values, **ends, gamma=0.99, gae_lambda=0.95)
        np.testing.assert_array_equal(before[:5], after[:5])
        assert (before[5:] != after[5:]).all()


@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 40), rank=st.integers(1, 3))
def test_discounted_sums_equal_the_recursion(seed, steps, rank):
    rng = np.random.default_rng(seed)
    terms, discounts = rng.normal(size=(2, steps, *[2] * (rank - 1)))
    given_terms, given_discounts = terms.copy(), discounts.copy()
    sums, expected = discounted_sum(terms, discounts), terms.copy()
    for t in range(steps - 2, -1, -1):
        expected[t] += discounts[t] * expected[t + 1]
    np.testing.assert_allclose(sums, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(terms, given_terms)
    np.testing.assert_array_equal(discounts, given_discounts)


def test_tensors_give_what_arrays_give():
    batch = random_batch(2, 8, 3)
    advantages, returns = gae(*map(torch.from_numpy, batch), 0.99, 0.95)
    np.testing.assert_allclose(advantages.numpy(), gae(*batch, 0.99, 0.95)[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(returns.numpy(), gae(*batch, 0.99, 0.95)[1], rtol=1e-6, atol=1e-6)
