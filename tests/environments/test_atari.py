"""Atari games, where ale-py is installed: the preprocessing, alone and vectorized, and the rewards to learn from."""

import gymnasium as gym
import numpy as np
import pytest

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from environments import UsageError, make_env, make_maps, make_vector_env, reset_all

PONG = "ALE/Pong-v5"
SCORES = "ALE/Scores-v5"


class Scores(gym.Env):
    """No game of ale-py, but named like one; `points` is what a right action scores, or a wrong one costs."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, points, obs_type):
        self.points = points

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def seen(self):
        self.observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.observation

    def step(self, action):
        right, self.t = action == (self.observation[0] > 0), self.t + 1
        return self.seen(), self.points if right else -self.points, self.t == 10, False, {}


@pytest.fixture
def ale():
    return pytest.importorskip("ale_py", reason="ale-py is not installed")


def test_four_gray_frames_of_every_fourth_one_and_the_games_own_reward(ale):
    single, many = make_env(PONG), make_vector_env(PONG, 3)
    for env in (single, many):
        (image,) = make_maps(env)[1].layout.images
        assert (image.shape, image.channels_first, image.high) == ((4, 84, 84), True, 255)
    assert single.unwrapped.ale.getFloat("repeat_action_probability") == 0.25
    observation, info = single.reset(seed=0)
    assert (observation.shape, observation.dtype) == ((4 * 84 * 84,), np.uint8)
    assert info["episode_frame_number"] <= 30
    before = single.unwrapped.ale.getEpisodeFrameNumber()
    newer, *_ = single.step(0)
    assert single.unwrapped.ale.getEpisodeFrameNumber() - before == 4
    np.testing.assert_array_equal(newer.reshape(4, 84, 84)[:3], observation.reshape(4, 84, 84)[1:])
    observations = reset_all(many, 0)
    assert (observations.shape, observations.dtype) == ((3, 4 * 84 * 84), np.uint8)
    for first in (observation, *observations):  # an episode begins with frames of zeros, then the picture
        assert [bool(frame.any()) for frame in first.reshape(4, 84, 84)] == [False, False, False, True]
    same = make_vector_env(PONG, 3)
    np.testing.assert_array_equal(reset_all(same, 0), observations)
    total, lengths = np.zeros(3), np.zeros(3)
    for _ in range(1_200):  # of which a game takes about 800
        observations, rewards, terminated, truncated, _ = many.step(np.zeros(3, np.int64))
        total, lengths = total + rewards, lengths + 1
        if lengths.max() == 100:  # the games began with different numbers of steps without action
            assert (observations[0] != observations[1]).any()
        if (done := terminated | truncated).any():
            assert (total[done] == -21).all()
            assert (lengths[done] > 700).all()
            last = observations
            observations, _ = many.reset(options={"reset_mask": done})
            assert (observations[done] != last[done]).any()
            np.testing.assert_array_equal(observations[~done], last[~done])
            total[done], lengths[done] = 0, 0
    assert (lengths < 1_200).all()
    single.close(), many.close(), same.close()


def test_other_observations_are_those_of_the_game(ale):
    assert make_env(PONG, None, {"obs_type": "ram"}).observation_space.shape == (128,)


@pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])
def test_training_learns_from_signs_and_reports_scores(script, monkeypatch, tmp_path):
    monkeypatch.setitem(gym.registry, SCORES, gym.envs.registration.EnvSpec(SCORES, Scores))
    runs = []
    for points in (1, 300):
        config = script.Config(
            env=SCORES,
            env_kwargs={"points": points, "obs_type": "ram"},
            total_timesteps=256,
            reward_norm=False,
            run_dir=tmp_path / str(points),
            img_dir=tmp_path,
            quiet=True,
        )
        actor = script.train(config).policy.actor
        returns = np.loadtxt(tmp_path / str(points) / "episodes.csv", delimiter=",", skiprows=1, usecols=1)
        runs.append((actor.state_dict(), returns))
    (weights, returns), (same_weights, larger_returns) = runs
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, same_weights[name])
    np.testing.assert_array_equal(returns * 300, larger_returns)
    assert np.abs(returns).max() > 1


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(gym.registry, "ALE/Missing-v5", None)
    del gym.registry["ALE/Missing-v5"]
    with pytest.raises(UsageError, match=r"ALE/Missing-v5 (is not a registered environment|needs the package ale-py)"):
        make_env("ALE/Missing-v5")


@pytest.mark.slow
def test_pong_works_as_written(ale, tmp_path, capsys):
    settings = {"env": PONG, "run_dir": tmp_path / "run", "img_dir": tmp_path, "critic_updates": 1}
    epoch.train(epoch.Config(total_timesteps=256, **settings))
    run = epoch.train(epoch.Config(resume=tmp_path / "run", total_timesteps=512))
    assert "in new episodes, since" in capsys.readouterr().out
    assert run.timestep == 512
    assert run.policy(np.zeros((2, 4, 84, 84), np.uint8)).shape == (2,)
