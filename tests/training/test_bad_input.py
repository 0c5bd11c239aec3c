"""A person's mistakes: one line that says what to do, the right exit status, no traceback, nothing written."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib

import pytest
import torch
from conftest import EPOCH, EVALUATE, PROJECT, STEP, sealed

from a2c_algorithm_epoch_update import A2C, Config, train
from training.checkpoint import FORMAT
from training.errors import StoppedError
from training.interrupts import GRACE
from training.run import Run

pytestmark = pytest.mark.slow

NAN_ENV = """
import time, gymnasium as gym, numpy as np
from gymnasium import spaces
class Bad(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)
    t = 0
    def __init__(self, observation=0.0, reward=0.0, error=None):
        self.observation, self.reward, self.error = observation, reward, error
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        self.t += 1
        if self.t == 100 and self.error:
            raise ValueError(self.error)
        late = self.t >= 100
        observation, reward = (self.observation, self.reward) if late else (0.0, 0.0)
        return np.full(2, observation, np.float32), reward, False, self.t % 10 == 0, {}
gym.register("NanObservation-v0", entry_point=Bad, kwargs={"observation": float("nan")})
gym.register("InfReward-v0", entry_point=Bad, kwargs={"reward": float("inf")})
gym.register("Raises-v0", entry_point=Bad, kwargs={"error": "the motor is on fire"})
class Text(Bad):
    action_space = spaces.Text(3)
gym.register("Text-v0", entry_point=Text)
class Hangs(Bad):
    def step(self, action):
        if self.t == 99:
            open("hangs", "w").close()
            time.sleep(1000)
        return super().step(action)
gym.register("Hangs-v0", entry_point=Hangs)
class Waits:
    def __del__(self):  # Python ignores what is raised here
        open("hangs", "w").close()
        time.sleep(1000)
class HangsTwice(Bad):
    def step(self, action):
        if self.t == 99:
            Waits()
            time.sleep(1000)
        return super().step(action)
gym.register("HangsTwice-v0", entry_point=HangsTwice)
class Broken(Bad):
    def __init__(self):
        raise RuntimeError("no license")
gym.register("Broken-v0", entry_point=Broken)
def nothing(): ...
"""


def refused(result, status, *parts):
    assert result.returncode == status, result.stderr
    (line,) = result.stderr.splitlines()
    for part in parts:
        assert part in line, line
    return line


BOTH = [
    (["--env", "Pendulum-v7"], ["--env Pendulum-v7", "Pendulum-v"]),
    (["--env", "CartPol-v1"], ["CartPole-v1"]),
    (["--env", "HalfCheetah-v2"], ["HalfCheetah-v4"]),
    (["--env", "nowhere:Id-v0"], ["nowhere"]),
    (["--env", "bad:Text-v0"], ["Text", "Discrete"]),
    (["--env", "bad:Broken-v0"], ["bad:Broken-v0", "no license"]),
    (["--gamma", "1.5"], ["--gamma 1.5", "between 0 and 1"]),
    (["--gamma", "nan"], ["--gamma nan", "between 0 and 1"]),
    (["--gamma", "much"], ["--gamma", "much"]),
    (["--gama", "0.9"], ["--gama"]),
    (["--total-timesteps", "0"], ["--total-timesteps 0", "at least 1"]),
    (["--checkpoint-interval", "-5"], ["--checkpoint-interval -5"]),
    (["--hidden-sizes", "64", "0"], ["--hidden-sizes"]),
    (["--actor-lr", "0"], ["--actor-lr 0.0", "greater than 0"]),
    (["--seed", "-1"], ["--seed -1"]),
    (["--mean-limit", "inf"], ["--mean-limit inf", "finite"]),
    (["--device", "cuda:99"], ["--device cuda:99", "cpu"]),
    (["--device", "toaster"], ["--device toaster", "cpu"]),
    (["--run-dir", "file/run"], ["--run-dir file/run"]),
    (["--img-dir", "file/img"], ["--img-dir file/img"]),
    (["--reward-shaping"], ["--reward-shaping", "Pendulum-v0", "module:function"]),
    (["--reward-shaping", "bad:missing"], ["--reward-shaping bad:missing"]),
    (["--resume", "nowhere"], ["nowhere"]),
]
EPOCH_ONLY = [
    (["--sample-size", "100"], ["--sample-size 100", "--num-envs 16"]),
    (["--num-envs", "0"], ["--num-envs 0"]),
    (["--critic-updates", "0"], ["--critic-updates 0"]),
    (["--gae-lambda", "-0.1"], ["--gae-lambda -0.1", "between 0 and 1"]),
    (["--vector-backend", "threads"], ["--vector-backend", "threads", "sync", "envpool"]),
    (["--vector-backend", "envpool"], ["--vector-backend envpool", "pip install envpool", "sync"]),
]
STEP_ONLY = [
    (["--trace-lambda", "2"], ["--trace-lambda 2.0", "between 0 and 1"]),
    (["--textbook", "--trace-lambda", "0.9"], ["--trace-lambda 0.9", "--textbook"]),
]


@pytest.mark.parametrize(
    ("name", "args", "parts"),
    [(EPOCH, *case) for case in BOTH + EPOCH_ONLY] + [(STEP, *case) for case in BOTH[:3] + STEP_ONLY],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_one_line_and_nothing_written(script, forked, tmp_path, name, args, parts):
    (tmp_path / "bad.py").write_text(NAN_ENV)
    (tmp_path / "file").write_text("not a directory")
    (tmp_path / "envpool.py").write_text("raise ImportError('No module named envpool')")
    run = script if args == ["--vector-backend", "envpool"] else forked  # this process may have the real one
    refused(run(name, *args), 2, f"{name}: error: ", *parts)
    assert {path.name for path in tmp_path.iterdir()} <= {"bad.py", "envpool.py", "file", "__pycache__"}
    assert (tmp_path / "file").read_text() == "not a directory"


def test_a_terminal_of_ascii_gets_the_same_line(script, monkeypatch):
    line = refused(script(EPOCH, "--gamma", "much"), 2, "--gamma", "much")
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert refused(script(EPOCH, "--gamma", "much"), 2) == line


def test_a_run_is_never_overwritten(script, tmp_path):
    assert script(EPOCH, "--total-timesteps", 512, "--run-dir", "run").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    refused(script(EPOCH, "--total-timesteps", 512, "--run-dir", "run"), 2, "--run-dir run", "--resume run")
    refused(script(EPOCH, "--resume", "run", "--gamma", 0.5), 2, "--gamma 0.5", "resume")
    refused(script(STEP, "--resume", "run"), 2, "--resume run", "epoch")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("name", [EPOCH, STEP])
@pytest.mark.parametrize(
    ("env", "what"),
    [
        ("NanObservation-v0", "observation is not finite"),
        ("InfReward-v0", "reward is not finite"),
        ("Raises-v0", "the motor is on fire"),
    ],
)
def test_an_environment_gone_wrong_stops_the_run(forked, tmp_path, name, env, what):
    (tmp_path / "bad.py").write_text(NAN_ENV)
    flags = ["--num-envs", 1, "--sample-size", 20] if name == EPOCH else []
    result = forked(name, "--env", f"bad:{env}", "--run-dir", "run", "--checkpoint-interval", 20, *flags)
    line = refused(result, 1, what, "checkpoint.pt")
    assert re.search(r"at timestep (99|100):", line)
    episodes = (tmp_path / "run" / "episodes.csv").read_text().splitlines()
    assert len(episodes) >= 1 + 8  # those of the batches before the one that is going on
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["timestep"] == 80
    assert all(torch.isfinite(parameter).all() for parameter in state["actor"].values())


@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_a_loss_that_is_not_finite_stops_the_run(forked, tmp_path, name):
    result = forked(name, "--critic-lr", 1e38, "--actor-lr", 1e38, "--run-dir", "run", "--total-timesteps", 5000)
    refused(result, 1, "at timestep ", "not finite")
    assert (tmp_path / "run" / "episodes.csv").exists()


@pytest.mark.parametrize("name", [EPOCH, STEP])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_is_saved(tmp_path, script, name, number):
    process = subprocess.Popen(
        [sys.executable, PROJECT / name, "--total-timesteps", "10000000", "--run-dir", "run", "--img-dir", "img"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "run" / "updates.csv"
    for _ in range(1200):
        time.sleep(0.1)
        if log.exists() and len(log.read_text().splitlines()) > 2:
            break
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 128 + number, err
    assert "--resume run" in out
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["timestep"] >= int(log.read_text().splitlines()[-1].split(",")[0])
    assert (tmp_path / "run" / "reward.png").exists()
    assert script(EVALUATE, "run", "--episodes", 2).returncode == 0


@pytest.mark.parametrize(
    ("name", "number", "env"),
    [
        (EPOCH, signal.SIGINT, "Hangs"),
        (EPOCH, signal.SIGTERM, "HangsTwice"),
        (STEP, signal.SIGINT, "HangsTwice"),
        (STEP, signal.SIGTERM, "Hangs"),
    ],
)
def test_an_environment_that_hangs_can_be_left(tmp_path, name, number, env):
    (tmp_path / "bad.py").write_text(NAN_ENV)
    flags = ["--env", f"bad:{env}-v0", "--run-dir", "run", "--checkpoint-interval", "20"]
    flags += ["--num-envs", "1", "--sample-size", "20"] if name == EPOCH else []
    process = subprocess.Popen(
        [sys.executable, PROJECT / name, *flags],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (tmp_path / "hangs").exists():
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 128 + number, err
    (line,) = err.splitlines()
    assert "at timestep 99: stopped in the middle of an update; the last checkpoint is run/checkpoint.pt" in line
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["timestep"] == 80


@pytest.mark.parametrize(("owner", "slow"), [(A2C, "update"), (Run, "plot")])
def test_a_slow_update_or_plot_is_not_stopped_halfway(tmp_path, monkeypatch, owner, slow):
    method = getattr(owner, slow)

    def signaled(*args):
        if not seen:
            seen.append(True)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(2 * GRACE)
        return method(*args)

    seen = []
    monkeypatch.setattr(owner, slow, signaled)
    monkeypatch.setattr("training.run.PLOT_INTERVAL", 0)  # plots at every checkpoint
    try:
        run = train(Config(run_dir=tmp_path / "run", img_dir=tmp_path, checkpoint_interval=128, total_timesteps=12_800))
    except StoppedError as error:  # a KeyboardInterrupt would end pytest
        pytest.fail(str(error))
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert run.exit_status == 128 + signal.SIGTERM
    assert state["timestep"] == run.timestep < 1_000


def test_evaluate_says_what_is_wrong(forked, tmp_path):
    refused(forked(EVALUATE, "nowhere"), 2, "nowhere", "config.json")
    refused(forked(EVALUATE), 2, "directory")
    assert forked(EPOCH, "--total-timesteps", 512, "--run-dir", "run").returncode == 0
    refused(forked(EVALUATE, "run", "--episodes", 0), 2, "--episodes 0")
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    whole = checkpoint.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"garbage" * 100):
        checkpoint.write_bytes(broken)
        refused(forked(EVALUATE, "run"), 2, "checkpoint.pt")
    settings = zlib.crc32((tmp_path / "run" / "config.json").read_bytes())
    checkpoint.write_bytes(sealed({"format": FORMAT, "config": settings, "actor": {}, "obs_normalizer": {}}))
    refused(forked(EVALUATE, "run"), 2, "does not fit")
    logs = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.csv")}
    refused(forked(EPOCH, "--resume", "run"), 2, "only one of the checkpoint and this script has actor_optimizer")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.csv")} == logs
    checkpoint.unlink()
    refused(forked(EVALUATE, "run"), 2, "checkpoint.pt")
    checkpoint.write_bytes(whole)
    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps({"env": "Pendulum-v0"}))
    refused(forked(EVALUATE, "run"), 2, "config.json")


@pytest.mark.parametrize(("setting", "value"), [("activation", "silu"), ("state_std", True)])
def test_networks_that_this_version_cannot_build_are_refused(forked, tmp_path, setting, value):
    """With others in their place, the policy would be another."""
    assert forked(EPOCH, "--total-timesteps", 512, "--run-dir", "run").returncode == 0
    config, checkpoint = tmp_path / "run" / "config.json", tmp_path / "run" / "checkpoint.pt"
    config.write_text(json.dumps(json.loads(config.read_text()) | {setting: value}))
    state = torch.load(checkpoint, weights_only=True) | {"format": 5, "config": zlib.crc32(config.read_bytes())}
    checkpoint.write_bytes(sealed(state))
    refused(forked(EVALUATE, "run"), 2, f"{setting} {value}", "commit")
    refused(forked(EPOCH, "--resume", "run"), 2, "older version", "commit")


def test_a_checkpoint_cannot_run_code(forked, tmp_path):
    assert forked(EPOCH, "--total-timesteps", 512, "--run-dir", "run").returncode == 0

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    (tmp_path / "run" / "checkpoint.pt").write_bytes(sealed({"format": 2, "actor": Evil()}))
    refused(forked(EVALUATE, "run"), 2, "checkpoint.pt")
    refused(forked(EPOCH, "--resume", "run"), 2, "checkpoint.pt")
    assert not (tmp_path / "pwned").exists()
