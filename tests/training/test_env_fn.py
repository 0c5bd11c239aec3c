"""`--env-fn module:function`: an environment that is not registered, on the command line."""

import csv
import importlib
import json
import sys

import pytest
from conftest import EPOCH, EVALUATE, STEP

import a2c_algorithm_step_update as step

MINE = """
import gymnasium as gym

class Mine(gym.Wrapper):
    def __init__(self, reward):
        super().__init__(gym.make("CartPole-v1", max_episode_steps=10))
        self.reward = reward

    def step(self, action):
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, self.reward, terminated, truncated, info

def make(reward=1.0, **options):
    return Mine(reward)

class Blind(Mine):
    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"

    def render(self):
        pass

def blind(**options):
    return Blind(1.0)

def broken():
    pass

number = 3
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_it_is_trained_resumed_scored_and_evaluated(name, forked, mine):
    flags = ["--env-fn", "mine:make", "--env-kwargs", '{"reward": 0.5}', "--run-dir", "run", "--total-timesteps", 512]
    result = forked(name, *flags)
    assert (result.returncode, result.stderr) == (0, "")
    assert "score: 5.0 +- 0.0" in result.stdout or "score: 4." in result.stdout
    assert (mine / "img" / ("A2C_make_epoch.png" if name == EPOCH else "A2C_make.png")).exists()
    result = forked(name, "--resume", "run", "--total-timesteps", 1_024)
    assert (result.returncode, result.stderr) == (0, "")
    with (mine / "run" / "episodes.csv").open(newline="") as file:
        assert {float(row["return"]) / float(row["length"]) for row in csv.DictReader(file)} == {0.5}
    result = forked(EVALUATE, "run", "--episodes", 3)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["mean_return"] <= 5
    result = forked(EVALUATE, "run", "--env-fn", "mine:blind", "--video", "film.mp4")
    assert result.returncode == 2
    assert "must return a uint8 array (height, width, 3)" in result.stderr
    assert not (mine / "film.mp4").exists()


@pytest.mark.slow
def test_a_run_from_python_is_evaluated_and_resumed_by_naming_the_function(forked, mine, monkeypatch):
    monkeypatch.syspath_prepend(mine)
    make = importlib.import_module("mine").make
    del sys.modules["mine"]  # other tests have modules of this name
    settings = {"run_dir": mine / "run", "img_dir": mine, "total_timesteps": 300, "quiet": True}
    step.train(step.Config(env="Mine", **settings), env_fn=make)
    result = forked(EVALUATE, "run")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1) or result.returncode == 1
    assert "--env-fn" in result.stderr
    assert forked(EVALUATE, "run", "--env-fn", "mine:make", "--episodes", 2).returncode == 0
    result = forked(STEP, "--resume", "run", "--env-fn", "mine:make", "--total-timesteps", 600)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mine", "--env-fn mine must be module:function"),
        ("mine:nothing", "mine has no function 'nothing'"),
        ("mine:number", "mine has no function 'number'"),
        ("none:make", "module 'none' cannot be imported"),
        ("leaves:make", "module 'leaves' cannot be imported: sys.exit(0) was called"),
        ("mine:broken", "the env_fn of mine:broken failed: broken() got an unexpected"),
        ("", "--env-fn must be module:function"),
    ],
)
def test_a_function_that_is_not_there_gets_a_line(value, message, forked, mine):
    (mine / "leaves.py").write_text("import sys; sys.exit(0)")
    result = forked(STEP, "--env-fn", value, "--run-dir", "run", "--env-kwargs", '{"a": 1}')
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert message in result.stderr
    assert not (mine / "run").exists()
