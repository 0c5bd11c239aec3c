"""The same seed gives the same numbers, whoever draws random numbers, also over a resume."""

import csv
import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
import training.logs
import training.run
from training import evaluate
from training.checkpoint import load_checkpoint

SCRIPTS = pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])


class Mine(gym.Env):
    """Draws in a way of its own, where `reset` need not seed anything."""

    observation_space, action_space = spaces.Box(-np.inf, np.inf, (2,)), spaces.Discrete(2)

    def __init__(self, draw):
        self.draw = draw
        torch.manual_seed(9)  # which must not reach the networks

    def see(self):
        draw = {"numpy": np.random.rand, "python": random.random, "torch": lambda: torch.rand(1).item()}
        kind = self.draw
        if kind == "own":
            return self.np_random.random(2).astype(np.float32)
        if kind == "space":
            return spaces.Box(-1, 1, (2,)).sample() * 0 + self.action_space.sample()
        if kind == "seeds":
            torch.manual_seed(5)
            return np.ones(2, np.float32)
        return np.full(2, draw[kind](), np.float32)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.see(), {}

    def step(self, action):
        self.t += 1
        observation = self.see()
        return observation, float(observation[0]) + float(action), False, self.t == 20, {}


DRAWS = pytest.mark.parametrize("draw", ["numpy", "python", "torch", "own", "space", "seeds"])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(training.logs, "LOG_INTERVAL", 128)
    monkeypatch.setattr(training.run, "plot_returns", lambda path, *args: path.touch())


def train(script, folder, draw, timesteps=384, callback=None, **settings):
    settings = {"run_dir": folder} | settings
    settings |= {"num_envs": 4, "sample_size": 64} if script is epoch else {}
    config = script.Config(env="Mine", total_timesteps=timesteps, quiet=True, img_dir=folder.parent, **settings)
    return script.train(config, lambda: Mine(draw), callback)


def numbers(run):
    with (run.directory / "episodes.csv").open(newline="") as file:
        episodes = [(row["timestep"], row["return"]) for row in csv.DictReader(file)]
    state = load_checkpoint(run.directory)
    return episodes, [value.tolist() for value in state["actor"].values()]


@DRAWS
@SCRIPTS
def test_a_seed_gives_the_same_numbers_also_over_a_resume(script, draw, tmp_path):
    np.random.seed(1)  # noqa: NPY002
    alone = train(script, tmp_path / "alone", draw)
    np.random.seed(2)  # noqa: NPY002
    random.seed(3)

    def stop(run, scalars):
        evaluate(run.policy, "Mine", 2, seed=1, env_fn=lambda: Mine(draw), stochastic=True)
        run.stop()

    stopped = train(script, tmp_path / "stopped", draw, callback=stop)
    assert stopped.timestep < 384
    np.random.seed(4)  # noqa: NPY002
    config = script.Config(resume=stopped.directory, total_timesteps=384)
    resumed = script.train(config, lambda: Mine(draw))
    assert numbers(resumed) == numbers(alone)
    other = train(script, tmp_path / "other", draw, seed=1)
    assert numbers(other) != numbers(alone)


def test_an_evaluation_has_the_score_of_its_seed(tmp_path):
    run = train(epoch, tmp_path / "run", "numpy", 512)
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    scores = [evaluate(run.policy, "Mine", 3, seed=4, env_fn=lambda: Mine("numpy")) for _ in range(2)]
    assert scores[0] == scores[1]
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


@SCRIPTS
def test_threads_of_the_caller_change_no_number_and_come_back(script, tmp_path):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = train(script, tmp_path / "two", "own", 512, hidden_sizes=(256, 256))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert numbers(two) == numbers(train(script, tmp_path / "one", "own", 512, hidden_sizes=(256, 256)))
