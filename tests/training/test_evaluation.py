"""Scoring a policy: it never hangs, and never turns a run that trained well into a failure."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import EPOCH, EVALUATE, PROJECT, STEP

import a2c_algorithm_step_update as step
import environments
from networks import NetworkSettings, make_actor
from training import Policy, evaluate, load_policy
from utils import ObservationNormalizer

pytestmark = pytest.mark.slow
MINE = """
import time, gymnasium as gym, numpy as np
class Mine(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    made, total, limit = 0, 0, 10
    def __init__(self, one=False, kind=""):
        if one and Mine.made:
            raise RuntimeError("port 5000 is taken")
        self.kind = kind
        Mine.made += 1
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.t += 1
        Mine.total += 1
        scoring = Mine.total > TRAINED
        if scoring and self.kind == "raises":
            raise ValueError("the motor is on fire")
        if scoring and self.kind == "waits":
            open("scoring", "w").close()
            time.sleep(100)
        reward = float("nan") if scoring and self.kind == "nan" else 1.0
        return np.zeros(2, np.float32), reward, False, self.kind != "endless" and self.t == 10, {}
    def close(self):
        Mine.made -= 1
        if self.kind == "stuck":
            raise OSError("the lid is stuck")
TRAINED = 1024
for kind in ("endless", "raises", "nan", "waits", "stuck"):
    gym.register(kind.capitalize() + "-v0", entry_point=Mine, kwargs={"kind": kind})
gym.register("One-v0", entry_point=Mine, kwargs={"one": True})
"""
FLAGS = ("--total-timesteps", 1024, "--run-dir", "run")


@pytest.fixture(autouse=True)
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)


@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_an_environment_without_an_end_is_scored_up_to_a_limit(forked, tmp_path, name):
    result = forked(name, "--env", "mine:Endless-v0", *FLAGS)
    assert result.returncode == 0, result.stderr
    assert result.stderr == "20 of 20 episodes of mine:Endless-v0 did not end within 10,000 steps and were cut there\n"
    assert "score: 10000.0 +- 0.0" in result.stdout
    result = forked(EVALUATE, "run", "--episodes", 3)
    assert json.loads(result.stdout)["mean_return"] == 10_000
    assert result.stderr.startswith("3 of 3 episodes")


@pytest.mark.parametrize("name", [EPOCH, STEP])
@pytest.mark.parametrize(
    ("kind", "words"), [("Raises", "ValueError: the motor is on fire"), ("Nan", "a reward that is not finite")]
)
def test_a_failure_in_scoring_is_a_line_after_a_complete_run(forked, tmp_path, name, kind, words):
    result = forked(name, "--env", f"mine:{kind}-v0", *FLAGS)
    assert result.returncode == 0
    (line,) = result.stderr.splitlines()
    assert line.startswith("scoring failed: ")
    assert words in line
    assert line.endswith("; the run in run is complete")
    assert (tmp_path / "run" / "reward.png").exists()
    (tmp_path / "mine.py").write_text(MINE.replace("TRAINED = 1024", "TRAINED = 0"))
    result = forked(EVALUATE, "run")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "evaluating run failed: " in line
    assert words in line


def test_an_environment_of_which_there_is_one_is_never_made_twice(forked):
    result = forked(STEP, "--env", "mine:One-v0", *FLAGS)
    assert (result.returncode, result.stderr) == (0, "")
    assert "scoring the final policy" in result.stdout
    for episodes in (1, 3):
        result = forked(EVALUATE, "run", "--episodes", episodes)
        assert (result.returncode, result.stderr) == (0, "")
        assert json.loads(result.stdout)["mean_return"] == 10


def test_a_close_that_raises_costs_nothing(forked):
    result = forked(STEP, "--env", "mine:Stuck-v0", *FLAGS)
    assert result.returncode == 0
    assert "score: 10.0 +- 0.0" in result.stdout
    assert set(result.stderr.splitlines()) == {"closing the environment failed: OSError: the lid is stuck"}


def test_ctrl_c_while_scoring_says_that_the_run_is_complete(tmp_path):
    command = [sys.executable, PROJECT / STEP, "--env", "mine:Waits-v0", *map(str, FLAGS)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    while process.poll() is None and not (tmp_path / "scoring").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=200)
    expected = "a2c_algorithm_step_update.py: error: scoring was interrupted; the run in run is complete\n"
    assert (process.returncode, err) == (130, expected)


@pytest.mark.parametrize("numbers", [{"episodes": 0}, {"num_envs": 0}, {"seed": -1}], ids=str)
def test_numbers_that_are_too_small_are_refused(numbers):
    policy, _ = load_policy(PROJECT / "policies" / "Pendulum-v0")
    with pytest.raises(environments.UsageError, match="must be at least 1, seed"):
        evaluate(policy, "Pendulum-v0", **{"episodes": 1, "seed": 1, **numbers})


def test_actions_of_another_kind_are_refused():
    policy, _ = load_policy(PROJECT / "policies" / "Pendulum-v0")
    with pytest.raises(ValueError, match=r"CartPole-v1 has the actions Discrete\(2\), and the policy those of Box"):
        evaluate(policy, "CartPole-v1", 1, seed=0)


def test_observations_of_another_kind_are_refused():
    import gymnasium as gym

    def with_mask():
        env = gym.make("CartPole-v1")
        env.unwrapped.action_mask = np.ones(2, np.int8)
        return env

    masked, plain = environments.make_maps(environments.make_env("mine", with_mask)), "CartPole-v1"
    actor = make_actor(masked[1].layout, masked[0].nvec, masked[0].bounded, NetworkSettings())
    policy = Policy(actor, ObservationNormalizer(6, unchanged=(0, 2)), *masked)
    assert evaluate(policy, "mine", 1, seed=0, env_fn=with_mask)["mean_return"] > 0
    expected = r"CartPole-v1 has the observations Box.*, and the policy those of Dict\('action_mask': MultiBinary\(2\)"
    with pytest.raises(ValueError, match=expected):
        evaluate(policy, plain, 1, seed=0)


def test_the_environment_that_is_trained_in_cannot_be_evaluated_in(tmp_path):
    import gymnasium as gym

    one, said = gym.make("CartPole-v1"), []

    def watch(run, scalars):
        with pytest.raises(ValueError, match="in use; it must make a new one") as error:
            evaluate(run.policy, "mine", 1, seed=0, env_fn=lambda: one)
        said.append(error)

    settings = {"total_timesteps": 2000, "quiet": True, "run_dir": tmp_path / "run", "img_dir": tmp_path}
    step.train(step.Config(env="mine", **settings), env_fn=lambda: one, callback=watch)
    assert len(said) == 2
