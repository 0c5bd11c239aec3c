"""Pendulum-v0 against recorded data, and what stands between actors and environments."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import environments
from environments import ActionMap, EnvironmentFault, UsageError, make_env, make_vector_env, shaping_reward
from environments.shaping import mountain_car_potential

RECORDED = np.genfromtxt(Path(__file__).parent / "pendulum_v0.csv", delimiter=",", names=True)


def recorded(*names):
    return np.stack([RECORDED[name] for name in names], axis=1)


def test_single_pendulum_repeats_every_recorded_transition():
    env = gym.make("Pendulum-v0").unwrapped
    env.reset(seed=0)
    states, actions = recorded("theta", "theta_dot"), recorded("action")
    observations = recorded("next_cos_theta", "next_sin_theta", "next_theta_dot")
    for state, action, expected, reward in zip(states, actions, observations, RECORDED["reward"], strict=True):
        env.state = state
        observation, r, terminated, truncated, _ = env.step(action)
        np.testing.assert_allclose(observation, expected, atol=1e-6)
        assert r == pytest.approx(reward, abs=1e-6)
        assert not terminated
        assert not truncated


def test_vector_pendulum_repeats_every_recorded_transition():
    envs = gym.make_vec("Pendulum-v0", num_envs=len(RECORDED), vectorization_mode="vector_entry_point")
    envs.reset(seed=0)
    envs.unwrapped.state = recorded("theta", "theta_dot").T
    observations, rewards, _, _, _ = envs.step(recorded("action"))
    np.testing.assert_allclose(observations, recorded("next_cos_theta", "next_sin_theta", "next_theta_dot"), atol=1e-6)
    np.testing.assert_allclose(rewards, RECORDED["reward"], atol=1e-6)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_vector_pendulum_is_many_single_ones(mode):
    """The same seeds give the trajectories, time limits and resets of Gymnasium's own vectorization."""
    ours = gym.make_vec("Pendulum-v0", 3, "vector_entry_point", autoreset_mode=mode)
    theirs = gym.make_vec("Pendulum-v0", 3, "sync", vector_kwargs={"autoreset_mode": mode})
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == mode
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.action_space == theirs.action_space
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(ours.reset(seed=5)[0], theirs.reset(seed=5)[0])
    for _ in range(450):
        actions = rng.uniform(-3, 3, (3, 1)).astype(np.float32)
        (*mine, _), (*others, _) = ours.step(actions), theirs.step(actions)
        for a, b in zip(mine, others, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        done = mine[2] | mine[3]
        if mode is AutoresetMode.DISABLED and done.any():
            options = {"reset_mask": done}
            np.testing.assert_array_equal(ours.reset(options=dict(options))[0], theirs.reset(options=dict(options))[0])


def test_v0_is_not_v1_at_the_speed_limit():
    v0, v1 = gym.make("Pendulum-v0"), gym.make("Pendulum-v1")
    for env in (v0, v1):
        env.reset(seed=0)
        env.unwrapped.state = np.array([1.0, 7.9])
    first, second = v0.step(np.array([2.0]))[0], v1.step(np.array([2.0]))[0]
    assert first[2] == second[2] == 8.0
    assert abs(first[1] - second[1]) > 1e-3


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v0"])
def test_vector_environments_show_the_last_observation_of_an_episode(name):
    envs = make_vector_env(name, 4)
    observations = environments.reset_all(envs, 0)
    envs.action_space.seed(0)
    for _ in range(250):
        actions = envs.action_space.sample()
        observations, _, terminated, truncated, _ = envs.step(actions)
        done = terminated | truncated
        if name == "CartPole-v1":  # terminated exactly where the last observation is out of bounds
            out = (abs(observations[:, 0]) > 2.4) | (abs(observations[:, 2]) > np.deg2rad(12))
            np.testing.assert_array_equal(terminated, out)
        if done.any():
            kept = observations[~done].copy()
            observations, _ = envs.reset(options={"reset_mask": done})
            np.testing.assert_array_equal(observations[~done], kept)


def test_runs_with_neighbouring_seeds_share_no_environment():
    starts = [environments.reset_all(make_vector_env("Pendulum-v0", 8), seed) for seed in (0, 1)]
    assert len(np.unique(np.concatenate(starts), axis=0)) == 16


class Spaces(gym.Env):
    """An environment of any spaces, that notes the actions it is given."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self.observation_space.sample(), 1.0, bool(self.np_random.random() < 0.1), False, {}


OBSERVATIONS = [
    spaces.Box(-1, 1, (3,)),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(-np.inf, np.inf, ()),
    spaces.Discrete(5),
    spaces.MultiBinary(3),
    spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3)),
    spaces.Tuple([spaces.Box(-1, 1, (2, 2)), spaces.MultiDiscrete([2, 3])]),
]
ACTIONS = [
    spaces.Box(-2, 5, (3,)),
    spaces.Box(np.array([[-1, 0], [2, -np.inf]]), np.array([[1, np.inf], [3, 0]]), dtype=np.float64),
    spaces.Box(-np.inf, np.inf, (2,)),
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 5, 3]),
    spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [0, -2]]),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
]


@pytest.mark.parametrize("space", OBSERVATIONS, ids=str)
def test_any_space_that_flattens_is_observed_as_a_vector(space):
    env = make_env("mine", lambda: Spaces(space, spaces.Discrete(2)))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (spaces.flatdim(space),)


@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_mapped_actions_are_in_the_space(space):
    action_map = ActionMap(space)
    rng = np.random.default_rng(0)
    if action_map.continuous:
        raw = rng.normal(0, 3, (200, action_map.size)).astype(np.float32)
    else:
        raw = rng.integers(0, action_map.nvec, (200, action_map.size))
    for action in action_map(torch.from_numpy(raw)).numpy():
        assert space.contains(action), action
    single = action_map(torch.from_numpy(raw[-1])).numpy()[()]
    np.testing.assert_array_equal(single, action)
    assert space.contains(single)


def test_a_bounded_box_is_scaled_and_an_unbounded_one_is_not():
    bounded, unbounded = ActionMap(spaces.Box(-2, 6, (1,))), ActionMap(spaces.Box(-np.inf, np.inf, (1,)))
    raw = torch.tensor([[-1.0], [0.0], [1.0], [3.0]])
    np.testing.assert_allclose(bounded(raw), [[-2], [2], [6], [6]])
    np.testing.assert_allclose(unbounded(raw), raw)


@pytest.mark.parametrize(
    "space",
    [spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1)), spaces.Text(3), spaces.Tuple([]), spaces.Box(0, 1, (0,))],
    ids=str,
)
def test_other_actions_are_refused(space):
    with pytest.raises(UsageError, match="has the action space"):
        make_env("mine", lambda: Spaces(spaces.Discrete(2), space))


def test_observations_that_do_not_flatten_are_refused():
    with pytest.raises(UsageError, match="cannot be flattened"):
        make_env("mine", lambda: Spaces(spaces.Sequence(spaces.Discrete(2)), spaces.Discrete(2)))


def test_shaping_telescopes_so_that_no_policy_gains_by_it():
    """Summed with discount over an episode, shaping is minus the first state's potential, whatever was done."""
    gamma, rng = 0.97, np.random.default_rng(0)
    for steps in (1, 5, 40):
        observations = rng.uniform([-1.2, -0.07], [0.6, 0.07], (steps + 1, 2))
        terminated = np.arange(steps) == steps - 1
        shaping = shaping_reward(
            observations[:-1], observations[1:], terminated, potential=mountain_car_potential, gamma=gamma
        )
        total = (gamma ** np.arange(steps) * shaping).sum()
        np.testing.assert_allclose(total, -mountain_car_potential(observations[:1])[0])


def test_a_potential_may_return_a_list_or_a_column_but_not_another_number_of_potentials():
    states, ended = np.arange(8.0).reshape(4, 2), np.zeros(4)
    for potential in (lambda o: o[:, 0].tolist(), lambda o: o[:, :1]):
        shaping = shaping_reward(states, states + 1, ended, potential=potential, gamma=1.0)
        np.testing.assert_array_equal(shaping, np.ones(4))
    with pytest.raises(EnvironmentFault, match=r"returned an array of shape \(\), not \(4,\)"):
        shaping_reward(states, states, ended, potential=lambda o: 1.0, gamma=1.0)


def test_mountain_car_potential_is_constant_where_no_force_acts():
    """It is the car's energy: coasting conserves it but for the error of the step, pushing along adds to it."""
    env = gym.make("MountainCar-v0").unwrapped
    gained = []
    for action in (1, 2):
        env.reset(seed=0)
        env.state = np.array([-0.5, 0.03])
        before = np.array([env.state])
        after = np.array([env.step(action)[0]])
        gained.append(np.diff([mountain_car_potential(x)[0] for x in (before, after)])[0])
    assert abs(gained[0]) < 0.3 * gained[1]
