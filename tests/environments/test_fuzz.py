"""Environments drawn at random: each valid one trains, scores and resumes to the bit; each broken one gets one line.

`FUZZ=300 pytest tests/environments/test_fuzz.py` tries so many.
"""

import csv
import os
import random
from collections import deque
from enum import Enum

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
import training.logs
import training.policy
import training.run
from training import TrainingError, UsageError, evaluate, load_policy
from training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
COUNT = int(os.environ.get("FUZZ", "15"))
FAULTS = [
    *("shorter", "longer", "scalar", "nan", "infinite", "text"),  # what is wrong of an observation
    *("reward none", "reward two", "reward nan", "reward text", "flag none"),
    *("four values", "old reset", "raises in step", "raises in reset", "raises in constructor"),
    *("mixed actions", "sequence", "no space", "copies differ", "same object", "not an environment"),
]
MANY_ONLY = ("copies differ", "same object", "raises in constructor")  # with one environment nothing is wrong

Mood = Enum("Mood", "CALM WILD")


def draw_observation_space(rng, depth=0):
    shape = tuple(rng.integers(1, 4, rng.integers(1, 3)).tolist())
    kind = rng.integers(11 if depth < 2 else 9)
    if kind < 4:
        dtype = rng.choice([np.float32, np.float64, np.float16])
        return spaces.Box(*sorted(rng.normal(size=2).round(2) * [1, 50]), shape, dtype)
    if kind == 4:
        return spaces.Box(-np.inf, np.inf, shape, np.float64)
    if kind == 5:
        return spaces.Box(0, rng.choice([1, 255]), shape, rng.choice([np.uint8, np.int64, np.uint16]))
    if kind == 6:
        return spaces.Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-3, 4)))
    if kind == 7:
        return spaces.MultiDiscrete(rng.integers(1, 5, shape))
    if kind == 8:
        return rng.choice([spaces.MultiBinary(3), spaces.MultiBinary((2, 2)), spaces.Text(3, charset="ab")])
    parts = [draw_observation_space(rng, depth + 1) for _ in range(rng.integers(1, 4))]
    return spaces.Tuple(parts) if kind == 9 else spaces.Dict({f"part{i}": part for i, part in enumerate(parts)})


def draw_action_space(rng):
    kind = rng.integers(9)
    if kind == 0:
        return spaces.Discrete(int(rng.integers(1, 6)), start=int(rng.integers(-3, 4)))
    if kind == 1:
        return spaces.MultiDiscrete(rng.integers(1, 5, (2, 2)), start=rng.integers(-2, 3, (2, 2)))
    if kind == 2:
        return spaces.MultiBinary(3)
    if kind == 3:
        return spaces.Box(np.array([-1.0, -np.inf, 0.0]), np.array([1.0, 3.0, np.inf]), dtype=np.float64)
    if kind == 4:
        return spaces.Box(-3e38, 3e38, (2,))
    if kind == 5:
        return spaces.Box(-5, 200, (2, 1), rng.choice([np.int16, np.int64]))
    if kind == 6:
        return spaces.Dict(a=spaces.Discrete(3), b=spaces.Tuple([spaces.MultiBinary(2), spaces.Discrete(2, start=4)]))
    if kind == 7:
        return spaces.Tuple([spaces.Box(-1, 1, (2,)), spaces.Box(0, 9, (1, 1), np.float64)])
    return spaces.Box(-2, 2, (int(rng.integers(1, 4)),), rng.choice([np.float32, np.float64, np.float16]))


class Drawn(gym.Env):
    """An environment as its seed has it, with one fault or none."""

    made = 0
    total = 0  # a class variable that belongs to the state

    def __init__(self, seed, fault, log):
        rng = np.random.default_rng(seed)
        self.fault, self.number = fault, Drawn.made
        Drawn.made += 1
        if fault == "raises in constructor" and self.number:
            raise RuntimeError("no more of them")
        self.observation_space, self.action_space = draw_observation_space(rng), draw_action_space(rng)
        if fault == "mixed actions":
            self.action_space = spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1))
        if fault == "sequence":
            self.observation_space = spaces.Sequence(spaces.Discrete(2))
        if fault == "no space":
            self.action_space = None
        if fault == "copies differ" and self.number:
            self.action_space = spaces.Discrete(2 + self.number)
        self.reward_kind, self.chance, self.ending = rng.integers(6), rng.integers(5), rng.integers(4)
        self.limit, self.in_place = int(rng.integers(1, 30)), rng.random() < 0.3
        self.buffer, self.forgets = None, rng.random() < 0.3
        self.history, self.mood, self.board = deque(maxlen=3), Mood.CALM, np.zeros((2, 3))
        self.row = self.board[1]
        log.append(self)
        self.closed = 0

    def random(self):
        """A number from 0 to 1, in one of the ways in which environments get one."""
        if self.chance == 1:
            return np.random.rand()  # noqa: NPY002
        if self.chance == 2:
            return random.random()
        if self.chance == 3:
            return torch.rand(1).item()
        if self.chance == 4:
            return float(np.sum(spaces.flatten(self.observation_space, self.observation_space.sample()) > 0) % 7) / 7
        return self.np_random.random()

    def see(self):
        self.observation_space.seed(int(self.random() * 1e6)) if self.chance != 4 else None
        observation = self.observation_space.sample()
        if self.in_place and isinstance(observation, np.ndarray):
            if self.buffer is None:
                self.buffer = observation
            self.buffer[...] = observation
            observation = self.buffer
        return observation

    def reset(self, *, seed=None, options=None):
        if not self.forgets:
            super().reset(seed=seed)
        self.t = 0
        if self.fault == "raises in reset" and (self.total > 40 or self.ending == 3):
            raise OSError("the cable is loose")
        return self.see() if self.fault == "old reset" else (self.see(), {})

    def step(self, action):
        if not self.action_space.contains(action):
            raise AssertionError(f"{action} is not of {self.action_space}")
        self.t += 1
        type(self).total += 1
        self.board += self.random()
        self.mood = Mood.WILD if self.random() < 0.3 else Mood.CALM
        self.history.append(float(self.row[0]) % 2)
        observation, reward = self.see(), sum(self.history) + self.mood.value
        terminated = self.ending in (0, 2) and self.random() < 0.1
        truncated = self.ending in (1, 2) and self.t >= self.limit
        kinds = (float, np.float32, lambda r: np.array([r]), lambda r: [r], int, lambda r: bool(r > 2))
        info = {"shape": np.zeros(self.t % 4), "kind": self.t if self.t % 2 else "odd"}
        result = [observation, kinds[self.reward_kind](reward), terminated, truncated, info]
        if self.fault and self.total > 20:
            self.spoil(result)
        return tuple(result)

    def spoil(self, result):
        flat = spaces.flatten(self.observation_space, result[0]).astype(np.float64)
        observations = {
            "shorter": flat[:-1],
            "longer": np.append(flat, 0),
            "scalar": np.float32(1) if self.observation_space.shape != () else np.zeros(3),
            "text": "observation" * 3,
        }
        rewards = {"none": None, "two": [1.0, 2.0], "nan": np.nan, "text": "high"}
        if self.fault in observations:
            result[0] = observations[self.fault]
        elif self.fault in ("nan", "infinite"):
            result[0] = np.full(self.observation_space.shape, np.nan if self.fault == "nan" else np.inf)
        elif self.fault.startswith("reward"):
            result[1] = rewards[self.fault.split()[1]]
        elif self.fault == "flag none":
            result[2] = None
        elif self.fault == "four values":
            del result[3]
        elif self.fault == "raises in step":
            raise KeyError("the motor\nis on fire")

    def close(self):
        self.closed += 1


def fault_of(seed):
    """None for two thirds of the environments."""
    rng = np.random.default_rng([seed, 1])
    fault = FAULTS[rng.integers(len(FAULTS))] if seed % 3 == 2 else None
    space = draw_observation_space(np.random.default_rng(seed))
    if fault in ("nan", "infinite", "shorter", "longer", "scalar") and not (
        isinstance(space, spaces.Box) and space.dtype.kind == "f" and len(space.shape) == 1
    ):
        return "reward nan"
    return fault


def numbers(run):
    with (run.directory / "episodes.csv").open(newline="") as file:
        episodes = [(row["timestep"], row["return"], row["length"]) for row in csv.DictReader(file)]
    return episodes, [value.tolist() for value in load_checkpoint(run.directory)["actor"].values()]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(training.run, "plot_returns", lambda path, *args: path.touch())
    monkeypatch.setattr(training.logs, "LOG_INTERVAL", 48)
    monkeypatch.setattr(training.policy, "MAX_EPISODE_STEPS", 40)


@pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])
@pytest.mark.parametrize("seed", range(COUNT))
def test_an_environment_drawn_at_random(seed, script, tmp_path, capsys):
    fault, made = fault_of(seed), []
    if script is step and fault in MANY_ONLY:
        fault = None
    Drawn.made = Drawn.total = 0
    more = {"num_envs": 4, "sample_size": 16} if script is epoch else {}
    settings = {"env": "Drawn", "hidden_sizes": (8,), "total_timesteps": 128, "img_dir": tmp_path} | more

    def make():
        if fault == "not an environment":
            return object()
        if fault == "same object" and made:
            return made[0]
        return Drawn(seed, fault, made)

    def train(name, callback=None):
        Drawn.total = 0  # as in a new process
        try:
            return script.train(script.Config(**settings, run_dir=tmp_path / name), make, callback)
        finally:
            assert {env.closed for env in made} <= {1}
            made.clear()

    if fault:
        with pytest.raises((UsageError, TrainingError)) as error:
            train("broken")
        assert "\n" not in str(error.value)
        assert fault.startswith("raises") or "traceback" not in str(error.value)  # it is known what is wrong
        return
    alone = train("alone")
    train("stopped", lambda run, scalars: run.stop())
    capsys.readouterr()
    Drawn.total = 0
    resumed = script.train(script.Config(resume=tmp_path / "stopped", img_dir=tmp_path), make)
    assert {env.closed for env in made} == {1}
    made.clear()
    assert "where they were" in capsys.readouterr().out
    assert numbers(resumed) == numbers(alone)
    policy, _ = load_policy(alone.directory)
    scores = [evaluate(p, "Drawn", 2, seed=3, env_fn=make, num_envs=1)["mean_return"] for p in (policy, alone.policy)]
    assert scores[0] == scores[1]
    made.clear()
    space = Drawn(seed, fault, made).observation_space
    if isinstance(space, spaces.Discrete):  # of whose observations a list may also be a flat one
        return
    space.seed(0)
    one, two = space.sample(), space.sample()
    np.testing.assert_allclose(np.ravel(policy([one, two])[1]), np.ravel(policy(two)), rtol=1e-5, atol=1e-5)
