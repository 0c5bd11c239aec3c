"""A run that was stopped, wherever and however, goes on to the numbers of the run that was not."""

import csv
import multiprocessing
import random
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
import environments
from environments.states import UnreadableError, get_state, set_state
from training.checkpoint import load_checkpoint
from training.files import load_config
from training.logs import COLUMNS
from training.settings import config_from

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("fork")  # a process that has imported everything already
WALL_TIME = {"wall_time", "timesteps_per_second"}


def numbers(run):
    """All that a finished run has in its checkpoint and logs, times on the clock apart."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    for name in ("wall_time", "config"):  # the latter is a checksum of a file with times in it
        state.pop(name)
    state["log"].pop("files")  # checksums too
    logs = {}
    for name in COLUMNS:
        with (run / name).open(newline="") as file:
            logs[name] = [{k: v for k, v in row.items() if k not in WALL_TIME} for row in csv.DictReader(file)]
    return state, logs


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)  # not a number


def train(script, **settings):
    process = FORK.Process(target=script.train, args=(script.Config(quiet=True, **settings),))
    process.start()
    return process


def resume(script, run, tmp_path):
    return script.Config(quiet=True, **saved_settings(script, run), resume=run, img_dir=tmp_path)


def saved_settings(script, run):
    config = config_from(script.Config, load_config(run))
    return {name: getattr(config, name) for name in ("env", "seed", "total_timesteps", "checkpoint_interval")}


def stop_and_resume(script, tmp_path, number, stops, **settings):
    """Stop a run at random places, as often as asked for, resuming it each time; returns it and the one left alone."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    settings["img_dir"] = tmp_path
    alone = train(script, run_dir=whole, **settings)
    rng, stopped = random.Random(0), 0
    process = train(script, run_dir=broken, **settings)
    while True:
        checkpoint = broken / "checkpoint.pt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.is_alive() and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        if process.is_alive() and stopped < stops:
            signal_process(process, number)
            stopped += 1
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
        if checkpoint.exists() and load_checkpoint(broken)["timestep"] >= settings["total_timesteps"]:
            break
        process = FORK.Process(target=script.train, args=(resume(script, broken, tmp_path),))
        process.start()
    alone.join()
    assert stopped == stops
    return broken, whole


def signal_process(process, number):
    process.kill() if number == signal.SIGKILL else process.terminate()


CASES = [
    (epoch, "Pendulum-v0", 15_360, 1_536),
    (epoch, "CartPole-v1", 15_360, 1_536),
    (step, "Pendulum-v0", 4_000, 250),
    (step, "Acrobot-v1", 4_000, 250),
    (epoch, "Hopper-v4", 10_240, 1_536),
]


@pytest.mark.parametrize(("script", "env", "timesteps", "interval"), CASES)
@pytest.mark.parametrize(("number", "stops"), [(signal.SIGKILL, 6), (signal.SIGTERM, 2)], ids=["kill", "term"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(script, env, timesteps, interval, number, stops, tmp_path):
    broken, whole = stop_and_resume(
        script, tmp_path, number, stops, env=env, total_timesteps=timesteps, checkpoint_interval=interval
    )
    assert_same(numbers(broken), numbers(whole))


@pytest.mark.parametrize(
    "name",
    ["CartPole-v1", "MountainCar-v0", "Acrobot-v1", "Pendulum-v0", "Taxi-v4", "FrozenLake-v1", "CliffWalking-v1"],
)
@pytest.mark.parametrize("vector", [False, True])
def test_an_environment_is_read_and_written_back(name, vector, tmp_path):
    check_environment(name, vector, tmp_path)


@pytest.mark.parametrize(
    "name", ["HalfCheetah-v4", "Hopper-v4", "Walker2d-v4", "Ant-v4", "Humanoid-v4", "Reacher-v4", "Ant-v5"]
)
def test_a_mujoco_environment_is_read_and_written_back(name, tmp_path):
    check_environment(name, True, tmp_path)


def check_environment(name, vector, tmp_path):
    """A second environment, brought to the state of a first one, does to the bit what that does."""

    def make():
        return environments.make_vector_env(name, 2) if vector else environments.make_env(name)

    def play(env, actions):
        outcomes = []
        for action in actions:
            observation, reward, terminated, truncated, _ = env.step(action)
            outcomes += [observation, reward, terminated, truncated]
            if np.any(terminated | truncated):
                options = {"reset_mask": terminated | truncated} if vector else None
                outcomes.append(env.reset(options=options)[0])
        return outcomes

    first, second = make(), make()
    first.action_space.seed(0)
    actions = [first.action_space.sample() for _ in range(300)]
    environments.reset_all(first, 7) if vector else first.reset(seed=7)
    play(first, actions[:130])
    torch.save(get_state(first), tmp_path / "state")
    set_state(second, torch.load(tmp_path / "state", weights_only=True))
    for a, b in zip(play(first, actions[130:]), play(second, actions[130:]), strict=True):
        np.testing.assert_array_equal(a, b)


class Unreadable(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self):
        self.t = iter(range(10**9))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, next(self.t) % 10 == 9, {}


class Slots(gym.Env):
    __slots__ = ("t",)


def test_what_cannot_be_saved_is_said_and_what_is_an_array_stays_one():
    tensor = torch.zeros(3)
    for wrong in (object(), {1, 2}, np.array([None]), np.zeros(2, [("a", "f4")]), tensor.numpy(), Slots()):
        with pytest.raises(UnreadableError):
            get_state(wrong)
    fortran = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    for value in (
        np.zeros(()),
        np.float64(2),
        np.arange(3),
        np.longdouble(1),
        np.ones(2, ">f8"),
        np.array(["ab"]),
        fortran,
    ):
        restored = set_state(None, get_state(value))
        assert (type(restored), restored.dtype, restored.flags.f_contiguous) == (
            type(value),
            value.dtype,
            value.flags.f_contiguous,
        )
        np.testing.assert_array_equal(restored, value)


def test_an_environment_that_cannot_be_read_starts_anew_and_says_so(tmp_path, capsys):
    with pytest.raises(UnreadableError, match="range_iterator"):
        get_state(Unreadable())
    settings = {"img_dir": tmp_path, "total_timesteps": 512, "env": "mine"}
    epoch.train(epoch.Config(run_dir=tmp_path / "run", **settings), Unreadable)
    settings["total_timesteps"] = 1024
    epoch.train(epoch.Config(resume=tmp_path / "run", **settings), Unreadable)
    assert "resumed at timestep 512, the environments in new episodes" in capsys.readouterr().out


def test_a_compiled_run_goes_on_as_if_it_had_not_been_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(step, "COMPILE_FROM", 0)
    settings = {"env": "Pendulum-v0", "total_timesteps": 20_000, "checkpoint_interval": 1_000}
    broken, whole = stop_and_resume(step, tmp_path, signal.SIGKILL, 1, **settings)
    assert_same(numbers(broken), numbers(whole))
