"""The scripts as processes: what a run leaves behind, that it repeats, and that it learns."""

import csv
import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch
from conftest import EPOCH, EVALUATE, STEP
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import a2c_algorithm_epoch_update
import a2c_algorithm_step_update
from benchmarks import peers, resources
from environments import make_env, make_maps

SHORT = {EPOCH: ("--total-timesteps", 4096), STEP: ("--total-timesteps", 1200)}
PLOT = {EPOCH: "A2C_{}_epoch.png", STEP: "A2C_{}.png"}


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(path):
    return [{k: v for k, v in row.items() if k not in ("wall_time", "timesteps_per_second")} for row in rows(path)]


@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_a_run_leaves_what_the_contract_says(script, tmp_path, name):
    result = script(name, "--env", "CartPole-v1", "--seed", 3, "--run-dir", "run", *SHORT[name])
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    assert (config["env"], config["seed"], config["total_timesteps"]) == ("CartPole-v1", 3, SHORT[name][1])
    assert {"gamma", "actor_lr", "critic_lr", "hidden_sizes", "obs_norm", "versions", "commit"} <= config.keys()
    episodes, updates = rows(run / "episodes.csv"), rows(run / "updates.csv")
    assert list(episodes[0]) == ["timestep", "return", "length", "wall_time"]
    assert all(float(row["return"]) == int(row["length"]) for row in episodes)  # CartPole: 1 a timestep
    assert sum(int(row["length"]) for row in episodes) <= SHORT[name][1]
    assert int(updates[-1]["timestep"]) == SHORT[name][1]
    assert all(np.isfinite(float(row[key])) for row in updates for key in ("policy_loss", "value_loss", "entropy"))
    events = EventAccumulator(str(run)).Reload()
    assert {"charts/episodic_return", "charts/SPS", "losses/value_loss"} <= set(events.Tags()["scalars"])
    for picture in (run / "reward.png", tmp_path / "img" / PLOT[name].format("CartPole-v1")):
        assert picture.read_bytes().startswith(b"\x89PNG")
    assert re.search(r"timestep \d+/\d+ +mean return .* timesteps/s .* s left", result.stdout)
    assert "run: run" in result.stdout
    assert re.search(r"score: \d+\.\d \+- \d+\.\d", result.stdout)

    state = torch.load(run / "checkpoint.pt", weights_only=True)
    assert state["timestep"] == SHORT[name][1]
    assert state["obs_normalizer"]["count"] >= SHORT[name][1]
    scores = [script(EVALUATE, "run", "--episodes", 7, "--seed", 7) for _ in range(2)]
    assert scores[0].returncode == 0, scores[0].stderr
    score = json.loads(scores[0].stdout.splitlines()[-1])
    assert list(score) == ["env", "episodes", "mean_return", "std_return", "min_return"]
    assert (score["env"], score["episodes"]) == ("CartPole-v1", 7)
    assert score["min_return"] <= score["mean_return"] <= 500
    assert scores[0].stdout == scores[1].stdout
    after = torch.load(run / "checkpoint.pt", weights_only=True)["obs_normalizer"]
    assert all(torch.equal(after[key], value) for key, value in state["obs_normalizer"].items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_the_same_seed_gives_the_same_numbers(forked, tmp_path, name):
    for run, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert forked(name, "--run-dir", run, "--seed", seed, *SHORT[name]).returncode == 0
    for log in ("episodes.csv", "updates.csv"):
        a, b, c = (without_times(tmp_path / run / log) for run in "abc")
        assert a == b
        assert a != c
    a, b, c = (torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)["actor"] for run in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert not any(torch.equal(a[key], c[key]) for key in a if key.endswith("weight"))


@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_underscores_and_every_switch(forked, tmp_path, name):
    flags = ["--no_obs_norm", "--no-reward-norm", "--hidden_sizes", 8, "--gamma", 0.9, "--reward-shaping"]
    flags += ["--gae-lambda", 0, "--ent-coef", 0.1] if name == EPOCH else ["--trace-lambda", 0, "--no-compile"]
    result = forked(name, "--env", "MountainCar-v0", "--run-dir", "run", *SHORT[name], *flags)
    assert result.returncode == 0, result.stderr
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["obs_norm"], config["reward_norm"], config["hidden_sizes"]) == (False, False, [8])
    assert config["reward_shaping"] == "built-in"
    assert config.get("gae_lambda", config.get("trace_lambda")) == 0
    episodes = rows(tmp_path / "run" / "episodes.csv")
    assert {row["return"] for row in episodes} == {"-200.0"}  # the environment's own, without the shaping
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["obs_normalizer"]["count"] == 0


@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_own_environment_and_own_potential(forked, tmp_path, name):
    """Registered by a module, with Dict observations and MultiBinary actions; the potential is the module's too."""
    (tmp_path / "mine.py").write_text(
        "import gymnasium as gym, numpy as np\n"
        "from gymnasium import spaces\n"
        "class Mine(gym.Env):\n"
        "    observation_space = spaces.Dict(x=spaces.Box(-1, 1, (2,)), k=spaces.Discrete(3))\n"
        "    action_space = spaces.MultiBinary(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        self.t = 0\n"
        "        return self.look(), {}\n"
        "    def look(self):\n"
        "        return {'x': self.np_random.random(2).astype(np.float32), 'k': int(self.np_random.integers(3))}\n"
        "    def step(self, action):\n"
        "        self.t += 1\n"
        "        return self.look(), float(action.sum()), self.t == 9, False, {}\n"
        "gym.register('Mine-v0', entry_point=Mine)\n"
        "def potential(observations):\n"
        "    assert observations.shape[1] == 5\n"
        "    return observations.sum(axis=1)\n"
    )
    result = forked(
        name, "--env", "mine:Mine-v0", "--run-dir", "run", "--reward-shaping", "mine:potential", *SHORT[name]
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "img" / PLOT[name].format("Mine-v0")).exists()
    assert {row["length"] for row in rows(tmp_path / "run" / "episodes.csv")} == {"9"}
    evaluated = forked(EVALUATE, "run", "--episodes", 3, "--stochastic")
    assert json.loads(evaluated.stdout)["env"] == "mine:Mine-v0"


@pytest.mark.slow
@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_resume_goes_on_with_the_run(forked, tmp_path, name):
    total = SHORT[name][1]
    assert forked(name, "--run-dir", "run", "--actor-lr", 1e-4, *SHORT[name]).returncode == 0
    before = rows(tmp_path / "run" / "episodes.csv")
    result = forked(name, "--resume", "run", "--total-timesteps", 2 * total)
    assert result.returncode == 0, result.stderr
    assert f"resumed at timestep {total}" in result.stdout
    after = rows(tmp_path / "run" / "episodes.csv")
    assert after[: len(before)] == before
    assert len(after) > len(before)
    timesteps = [int(row["timestep"]) for row in rows(tmp_path / "run" / "updates.csv")]
    assert timesteps == sorted(set(timesteps))
    assert timesteps[-1] == 2 * total
    times = [float(row["wall_time"]) for row in after]
    assert times == sorted(times)


def test_default_run_directory_and_settings_that_need_no_flag(script, tmp_path):
    result = script(EPOCH, "--total-timesteps", 512)
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"Pendulum-v0_epoch_seed0_[\d-]+", run.name)
    assert f"run: runs/{run.name}" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="benchmarks/resources.py is for Linux")
def test_a_long_run_does_not_grow_in_memory():
    """Less than 1 MB for 100,000 timesteps, over the second half of a million."""
    flags = ["--num-envs", "64", "--sample-size", "2048", "--critic-updates", "1", "--no-compile"]
    *samples, _ = resources.memory("epoch", 1_000_000, *flags, interval=0.1)
    timesteps, megabytes = np.array([sample for sample in samples if 500_000 <= sample[0] < 1_000_000]).T
    assert len(timesteps) >= 10
    slope, _ = np.polyfit(timesteps, megabytes, 1)
    assert slope * 100_000 < 1


def test_learns_pendulum(forked, tmp_path):
    """A random policy scores about -1230 a Pendulum episode; 60,000 timesteps get far above that."""
    result = forked(EPOCH, "--total-timesteps", 60_000, "--run-dir", "run")
    assert result.returncode == 0, result.stderr
    score = json.loads(forked(EVALUATE, "run", "--episodes", 50).stdout)
    assert score["mean_return"] > -500


@pytest.mark.slow
def test_step_update_learns_cartpole(forked, tmp_path):
    """A random policy scores about 22."""
    result = forked(STEP, "--env", "CartPole-v1", "--total-timesteps", 12_000, "--run-dir", "run")
    assert result.returncode == 0, result.stderr
    score = json.loads(forked(EVALUATE, "run", "--episodes", 50).stdout)
    assert score["mean_return"] > 100


def test_the_jax_loop_is_measured_with_the_defaults_of_the_scripts():
    action_map, observation_map = make_maps(make_env("CartPole-v1"))
    config = a2c_algorithm_epoch_update.Config()
    learner = a2c_algorithm_epoch_update.A2C(config, observation_map.layout, action_map)
    epoch = dataclasses.asdict(config) | {"critic_updates": learner.critic_updates}  # which depends on the environment
    for name, settings in (("step", dataclasses.asdict(a2c_algorithm_step_update.Config())), ("epoch", epoch)):
        assert peers.JAX_SETTINGS[name].items() <= settings.items()
    assert (learner.critic_updates, learner.ent_coef) == (resources.CRITIC_UPDATES, 0.0)
    assert a2c_algorithm_epoch_update.MEAN_SQUARE_HORIZON == peers.MEAN_SQUARE_HORIZON
    assert a2c_algorithm_step_update.TraceOptimizer.beta == peers.BETA
