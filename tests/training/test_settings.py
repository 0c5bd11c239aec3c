"""Settings from Python: what is meant is taken, and what cannot be is one line."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from environments import UsageError
from training import load_policy


@pytest.mark.parametrize(
    ("setting", "given", "taken"),
    [
        ("run_dir", "runs/a", Path("runs/a")),
        ("total_timesteps", 1e5, 100_000),
        ("num_envs", np.int64(8), 8),
        ("seed", np.float32(3), 3),
        ("gamma", 1, 1.0),
        ("gamma", np.float64(0.5), 0.5),
        ("hidden_sizes", [32, 16.0], (32, 16)),
        ("hidden_sizes", 64, (64,)),
        ("run_dir", None, None),
        ("vector_backend", "envpool", "envpool"),
    ],
)
def test_values_of_another_type_are_converted(setting, given, taken):
    value = getattr(epoch.Config(**{setting: given}), setting)
    assert (value, type(value)) == (taken, type(taken))


@pytest.mark.parametrize(
    ("setting", "given", "words"),
    [
        ("total_timesteps", 1000.5, "--total-timesteps 1000.5 must be an integer"),
        ("total_timesteps", "many", "must be an integer"),
        ("seed", None, "--seed None must be an integer"),
        ("seed", True, "must be an integer"),
        ("gamma", "0.9", "must be a number"),
        ("compile", 1, "must be True or False"),
        ("env", gym.Env(), "must be a string"),
        ("hidden_sizes", ["a"], "must be integers"),
        ("vector_backend", "threads", "must be sync or async or envpool"),
        ("reward_shaping", np.sum, "must be a string or None"),
        ("run_dir", 5, "must be a path or None"),
    ],
)
def test_what_cannot_be_converted_is_named(setting, given, words):
    with pytest.raises(UsageError) as error:
        epoch.Config(**{setting: given})
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_optional_setting():
    assert step.Config(reward_shaping="module:function").reward_shaping == "module:function"
    assert step.Config().reward_shaping is None
    with pytest.raises(UsageError, match=r"--actor-lr high must be a number$"):
        step.Config(actor_lr="high")


def test_strings_do_for_directories(tmp_path):
    settings = {"run_dir": str(tmp_path / "run"), "img_dir": str(tmp_path), "total_timesteps": 512.0, "quiet": True}
    run = epoch.train(epoch.Config(env="CartPole-v1", **settings))
    policy, env_id = load_policy(str(run.directory))
    assert (env_id, policy(np.zeros((1, 4), np.float32)).shape) == ("CartPole-v1", (1,))
