"""`--frame-stack K`: the observations of K steps in a row, for environments that do not show their speeds."""

import json
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import velocity_free
from conftest import EPOCH, EVALUATE, check_resuming
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from environments import UsageError, make_env, make_vector_env, reset_all
from training import evaluate, load_policy


class Counts(gym.Env):
    """Observes the number of the step, as a Dict."""

    observation_space = spaces.Dict({"a": spaces.Box(-np.inf, np.inf, (1,)), "b": spaces.Discrete(3)})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.seen(), {}

    def seen(self):
        return {"a": np.float32([self.t]), "b": self.t % 3}

    def step(self, action):
        self.t += 1
        return self.seen(), 1.0, self.t == 5, False, {}


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_the_last_observation_comes_last(backend):
    envs = make_vector_env("Counts", 2, Counts, backend=backend, frame_stack=3)
    observations = reset_all(envs, 0).reshape(2, 3, 4)
    np.testing.assert_array_equal(observations, [[[0, 1, 0, 0]] * 3] * 2)
    for _ in range(4):
        observations, *_ = envs.step(np.zeros(2, np.int64))
    frames = [[2, 0, 0, 1], [3, 1, 0, 0], [4, 0, 1, 0]]
    np.testing.assert_array_equal(observations.reshape(2, 3, 4), [frames] * 2)
    observations, *_ = envs.step(np.zeros(2, np.int64))
    np.testing.assert_array_equal(observations.reshape(2, 3, 4)[:, :, 0], [[3, 4, 5]] * 2)
    observations, _ = envs.reset(options={"reset_mask": np.array([True, False])})
    np.testing.assert_array_equal(observations.reshape(2, 3, 4)[:, :, 0], [[0, 0, 0], [3, 4, 5]])
    envs.close()


@pytest.mark.slow
@pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])
def test_a_run_is_resumed_to_the_bit_and_played(script, forked, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(velocity_free.__file__).parent)
    settings = {"env": "velocity_free:CartPoleNoVel-v1", "frame_stack": 4, "total_timesteps": 2_048, "quiet": True}
    check_resuming(script, tmp_path, **settings)
    policy, _ = load_policy(tmp_path / "whole")
    frames = np.zeros((4, 2), np.float32)
    assert policy(frames).shape == ()
    assert policy(frames.ravel()).shape == ()
    assert policy(np.zeros((7, 8))).shape == (7,)
    result = forked(EVALUATE, "whole", "--episodes", 3)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["mean_return"] > 0


@pytest.mark.slow
def test_what_one_observation_does_not_show_is_learned(tmp_path):
    settings = {"env": "velocity_free:CartPoleNoVel-v1", "img_dir": tmp_path, "total_timesteps": 30_000, "quiet": True}
    for frames in (1, 4):
        run = epoch.train(epoch.Config(run_dir=tmp_path / f"{frames}", frame_stack=frames, **settings))
        score = evaluate(run.policy, settings["env"], 20, seed=5)["mean_return"]
        assert (score > 100) == (frames == 4), score


def test_bad_input_gets_a_line(forked, tmp_path):
    for flags, message in (
        (["--frame-stack", 0], "--frame-stack 0 must be at least 1"),
        (
            ["--frame-stack", 2, "--env", "MountainCar-v0", "--reward-shaping"],
            "cannot be combined with --reward-shaping",
        ),
    ):
        result = forked(EPOCH, *flags, "--run-dir", "run")
        assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, "")
        assert message in result.stderr
    assert not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match="--frame-stack is not possible with --vector-backend envpool"):
        make_vector_env("CartPole-v1", 2, backend="envpool", frame_stack=2)


def test_one_frame_is_the_environment_itself():
    env = make_env("CartPole-v1", frame_stack=1)
    assert env.observation_space.shape == (4,)
    env.close()
