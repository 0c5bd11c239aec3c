"""`--vector-backend async`: environments in processes of their own do what they do in one process."""

import contextlib
import csv
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import EPOCH, PROJECT

import environments
from environments import EnvironmentFault, UsageError, processes
from environments.processes import WorkerError

SOON = ["--checkpoint-interval", "256"]
ACTIONS = np.zeros(2, dtype=np.int64)

OWN = """
import os, subprocess, sys, time
import gymnasium as gym
import numpy as np

class Own(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)
    parent = os.getppid()

    def __init__(self, fault="", beside=False, closing=""):
        self.fault, self.closing, self.steps, self.total = fault, closing, 0, 0
        # A program that outlives the process that started it, but for close().
        self.beside = subprocess.Popen(["sleep", "1000"]) if beside else None

    def close(self):
        if self.beside:
            self.beside.terminate()
        exec(self.closing)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        self.steps, self.total = self.steps + 1, self.total + 1
        if self.total > 100 and self.fault:
            exec(self.fault)
        # From a global generator: each process must have numbers of its own.
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), np.random.rand(), self.steps > 20, False, {}

gym.register("Own-v0", Own)
gym.register("OnlyOne-v0", lambda: Own() if os.getpid() == MAIN else 1 / 0)
MAIN = os.getpid()
"""


def play(name, backend, steps=300, num_envs=3):
    envs = environments.make_vector_env(name, num_envs, backend=backend)
    observations = environments.reset_all(envs, 0)
    envs.action_space.seed(0)
    seen = []
    for _ in range(steps):
        reached, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
        seen.append((observations, reached, rewards, terminated, truncated))
        observations, done = reached, terminated | truncated
        if done.any():
            observations, _ = envs.reset(options={"reset_mask": done})
    envs.close()
    return tuple(map(np.array, zip(*seen, strict=True)))


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v0", pytest.param("Hopper-v4", marks=pytest.mark.slow)])
def test_transitions_are_those_of_one_process(name):
    for together, apart in zip(play(name, "sync"), play(name, "async"), strict=True):
        if name == "Pendulum-v0":  # whose vectorized form rounds otherwise
            np.testing.assert_allclose(together[0], apart[0], atol=1e-5)
        else:
            np.testing.assert_array_equal(together, apart)


def started(directory, monkeypatch, **kwargs):
    """Two environments in processes, after 100 of their own steps, before `fault` happens."""
    name = f"Own{directory.name.replace('-', '')[-40:]}"
    (directory / f"{name}.py").write_text(OWN.replace("Own-v0", f"{name}-v0").replace("OnlyOne-v0", f"{name}-v1"))
    monkeypatch.syspath_prepend(directory)
    envs = environments.make_vector_env(f"{name}:{name}-v0", 2, env_kwargs=kwargs, backend="async")
    environments.reset_all(envs, 0)
    for _ in range(100):
        envs.step(ACTIONS)
    return envs


def train(directory, *flags, wait=True, env="own:Own-v0"):
    (directory / "own.py").write_text(OWN)
    command = [sys.executable, PROJECT / EPOCH, "--env", env, "--vector-backend", "async", "--num-envs", "4"]
    command += ["--sample-size", "64", "--total-timesteps", "4096", *flags, "--img-dir", "."]
    environment = os.environ | {"PYTHONPATH": str(directory)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A process group of its own, as a shell has it for each command.
    process = subprocess.Popen([*map(str, command)], cwd=directory, env=environment, process_group=0, **pipes)
    return (process, *process.communicate(timeout=200)) if wait else process


def processes_of(group):
    """The ids of the processes whose command line names this directory."""
    found = subprocess.run(["pgrep", "-f", str(group)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def children(envs):
    """The processes that the environments started."""
    parents = ",".join(str(process.pid) for process in envs.processes)
    found = subprocess.run(["pgrep", "-P", parents], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def is_running(pid):
    """Whether there is a process with this id, other than one that has ended and was not waited for."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return found.strip()[:1] not in ("", "Z")


@pytest.mark.slow
def test_an_orphan_in_a_long_step_ends(tmp_path):
    run = tmp_path / "run"
    process = train(tmp_path, "--run-dir", str(run), "--env-kwargs", '{"fault": "time.sleep(1000)"}', wait=False)
    time.sleep(0.1)
    while len(processes_of(run)) < 5:
        time.sleep(0.05)
    time.sleep(3)
    process.kill()
    for _ in range(200):
        if not processes_of(run):
            break
        time.sleep(0.1)
    process.wait()
    assert processes_of(run) == []


@pytest.mark.slow
def test_a_resumed_run_goes_on_where_its_workers_were(tmp_path):
    process, out, err = train(tmp_path, "--run-dir", str(tmp_path / "whole"))
    assert (process.returncode, err) == (0, "")
    train(tmp_path, "--run-dir", str(tmp_path / "broken"), "--total-timesteps", "2048")
    command = ["--resume", str(tmp_path / "broken"), "--total-timesteps", "4096"]
    out = subprocess.run(
        [sys.executable, PROJECT / EPOCH, *command, "--img-dir", "."],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "the environments where they were" in out
    episodes = []
    for run in ("whole", "broken"):
        with (tmp_path / run / "episodes.csv").open(newline="") as file:
            episodes.append([(row["timestep"], row["return"], row["length"]) for row in csv.DictReader(file)])
    # Learning rates are others after the resume, but the environments do not depend on actions.
    assert episodes[0] == episodes[1]
    returns = [row[1] for row in episodes[0]]
    assert len(set(returns)) == len(returns)  # no two workers drew the same numbers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raise ValueError('boom')", "ValueError: boom"),
        ("sys.exit(5)", "SystemExit: sys.exit(5) was called"),
        ("os._exit(3)", "died, with exit status 3"),
        ("os.kill(os.getpid(), 9)", "died, with exit status -9"),
        # As a process that ends: its files are closed a while before it is reported as ended.
        ("os.closerange(3, 100); time.sleep(1); os._exit(4)", "died, with exit status 4"),
    ],
)
def test_a_worker_that_fails_ends_the_run_in_a_line(tmp_path, fault, message):
    flags = ["--run-dir", str(tmp_path / "run"), "--checkpoint-interval", "256", "--quiet"]
    flags += ["--env-kwargs", f'{{"fault": "{fault}"}}']
    process, out, err = train(tmp_path, *flags)
    assert (process.returncode, out, err.count("\n")) == (1, "", 1), err
    assert message in err
    assert re.search(r"the last checkpoint is .*/run/checkpoint.pt", err)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["timestep"] == 256
    assert processes_of(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["time.sleep(100)", "raise ValueError('boom')", ""])
def test_workers_and_what_their_environments_started_are_ended(fault, tmp_path, monkeypatch):
    if "sleep" in fault:
        monkeypatch.setattr(processes, "TIMEOUT", 0.5)
    monkeypatch.setattr(processes, "CLOSING", 0.5)
    envs = started(tmp_path, monkeypatch, fault=fault, beside=True)
    beside = children(envs)
    assert len(beside) == 2
    with contextlib.ExitStack() as stack:
        if fault:
            errors, message = (EnvironmentFault, "did not answer") if "sleep" in fault else (WorkerError, "boom")
            stack.enter_context(pytest.raises(errors, match=message))
        envs.step(ACTIONS)
    envs.close()
    assert not any(process.is_alive() for process in envs.processes)
    assert not any(map(is_running, beside))


@pytest.mark.parametrize("closing", ["time.sleep(100)", "raise ValueError('stuck')"])
def test_an_environment_that_does_not_close_is_ended(closing, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(processes, "CLOSING", 0.5)
    envs = started(tmp_path, monkeypatch, closing=f"if os.getpid() != MAIN: {closing}")
    envs.close()
    assert not any(process.is_alive() for process in envs.processes)
    assert capfd.readouterr().err.count("\n") == (0 if "sleep" in closing else 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "timeout", "words"),
    [(signal.SIGKILL, 60, "worker 1 of .* died, with exit status -9"), (signal.SIGSTOP, 0.5, "did not answer")],
)
def test_a_worker_that_dies_or_stops_before_its_state_is_read(number, timeout, words, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "TIMEOUT", timeout)
    monkeypatch.setattr(processes, "CLOSING", 0.5)
    envs = started(tmp_path, monkeypatch)
    os.kill(envs.processes[1].pid, number)
    with pytest.raises(EnvironmentFault, match=words):
        envs.get_states()
    envs.close()
    assert not any(process.is_alive() for process in envs.processes)


def test_processes_that_cannot_be_started_get_a_line():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 20, before[1]))
    try:
        with pytest.raises(UsageError, match=r"--vector-backend async: .*Too many open files; use sync"):
            environments.make_vector_env("CartPole-v1", 64, backend="async")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
def test_an_environment_of_which_there_can_be_only_one_gets_a_line(tmp_path):
    process, out, err = train(tmp_path, "--run-dir", str(tmp_path / "run"), env="own:OnlyOne-v0")
    assert (process.returncode, out, err.count("\n")) == (2, "", 1), err
    assert "--vector-backend async: --env own:OnlyOne-v0 cannot be made: division by zero; use sync" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_all_processes_leaves_none_behind(tmp_path, number):
    run = tmp_path / "run"
    process = train(tmp_path, "--run-dir", str(run), "--total-timesteps", "100000000", *SOON, wait=False)
    while not (run / "checkpoint.pt").exists():
        time.sleep(0.05)
    saved = (run / "checkpoint.pt").stat().st_mtime_ns
    if number == signal.SIGKILL:
        os.kill(process.pid, number)
    else:
        os.killpg(process.pid, number)  # as from a terminal or a scheduler
    err = process.communicate(timeout=200)[1]
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number), err
    assert (err, (run / "checkpoint.pt").stat().st_mtime_ns > saved) == ("", True) or number == signal.SIGKILL
    for _ in range(100):
        if not processes_of(run):
            break
        time.sleep(0.1)
    assert processes_of(run) == []


def test_copies_that_differ_are_refused():
    made = []

    def make():
        made.append(True)
        return environments.make_env("CartPole-v1" if len(made) == 1 else "Acrobot-v1")

    message = "--vector-backend async: copies of Mixed have different observation or action spaces; use sync"
    with pytest.raises(UsageError, match=message):
        environments.make_vector_env("Mixed", 2, env_fn=make, backend="async")
