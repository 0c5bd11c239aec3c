"""`--vector-backend envpool`: other people's environments in C++, in the form in which the scripts meet every one."""

import csv

import gymnasium as gym
import numpy as np
import pytest
from conftest import EPOCH

import environments
from environments import UsageError
from environments.envpool import EnvPoolVectorEnv

pytest.importorskip("envpool", reason="EnvPool is optional, and not installed")


def play(name, num_envs, steps, seed=0):
    """Transitions (s, a, r, s', terminated, truncated) of random actions, each of shape (T, N, ...)."""
    envs = environments.make_vector_env(name, num_envs, backend="envpool")
    observations = environments.reset_all(envs, seed)
    envs.action_space.seed(seed)
    transitions = []
    for _ in range(steps):
        actions = envs.action_space.sample()
        reached, rewards, terminated, truncated, _ = envs.step(actions)
        transitions.append((observations, actions, rewards, reached, terminated, truncated))
        observations, done = reached, terminated | truncated
        if done.any():
            observations, _ = envs.reset(options={"reset_mask": done})
            np.testing.assert_array_equal(observations[~done], reached[~done])
    envs.close()
    return tuple(map(np.array, zip(*transitions, strict=True)))


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v0"])
def test_every_step_is_a_transition_of_gymnasiums_environment(name):
    """Also those after an episode's end, which EnvPool by itself spends on a reset."""
    seen, actions, rewards, reached, terminated, truncated = play(name, 3, 450)
    env = gym.make(name).unwrapped
    for index in np.ndindex(rewards.shape):
        env.reset(seed=0)
        state = seen[index].astype(np.float64)
        env.state = state if name == "CartPole-v1" else np.array([np.arctan2(state[1], state[0]), state[2]])
        expected, reward, ends, _, _ = env.step(actions[index])
        np.testing.assert_allclose(reached[index], expected, atol=1e-4)
        assert rewards[index] == pytest.approx(reward, abs=1e-3)
        assert terminated[index] == ends
    done = terminated | truncated
    assert done.sum() >= 6
    starts = seen[1:][done[:-1]]
    assert (abs(starts) <= (0.05 if name == "CartPole-v1" else 1.0)).all()
    assert len(np.unique(starts, axis=0)) == len(starts)
    if name == "Pendulum-v0":
        assert set(np.flatnonzero(truncated.all(axis=1)) + 1) == {200, 400}


def test_seeds_decide():
    for first, second in ((0, 0), (0, 1)):
        same = np.array_equal(play("CartPole-v1", 2, 5, first)[0], play("CartPole-v1", 2, 5, second)[0])
        assert same == (first == second)
    starts = [play("Pendulum-v0", 8, 1, seed)[0] for seed in (0, 1)]
    assert len(np.unique(np.concatenate(starts).reshape(-1, 3), axis=0)) == 16


@pytest.mark.slow
def test_a_run_counts_each_step_once(script, tmp_path):
    """In CartPole, where each step is worth 1, an episode's return is its length, and the lengths fill the run."""
    run = tmp_path / "run"
    args = ("--env", "CartPole-v1", "--vector-backend", "envpool", "--num-envs", 4, "--run-dir", run)
    done = script(EPOCH, *args, "--total-timesteps", 5120)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    with (run / "episodes.csv").open(newline="") as file:
        episodes = list(csv.DictReader(file))
    assert all(float(row["return"]) == float(row["length"]) for row in episodes)
    assert 5120 - 4 * 500 < sum(int(row["length"]) for row in episodes) <= 5120


def test_what_it_does_not_have_is_refused():
    gym.register("Plane-v0", entry_point="gymnasium.envs.classic_control:PendulumEnv")
    with pytest.raises(UsageError, match="--vector-backend envpool has no Plane-v0; use --vector-backend sync"):
        environments.make_vector_env("Plane-v0", 2, backend="envpool")
    with pytest.raises(UsageError, match="not vectors"):
        EnvPoolVectorEnv("FrozenLake-v1", 2)
    with pytest.raises(UsageError, match="env_fn"):
        environments.make_vector_env("mine", 2, lambda: gym.make("CartPole-v1"), backend="envpool")
