"""The two algorithms stand alone: with the networks, utils and environments, and a stub for all that surrounds them."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import EPOCH, PROJECT, STEP

pytestmark = pytest.mark.slow

# In place of the package `training`: some 20 lines are what a script needs of it.
STUB = """
from dataclasses import dataclass
from networks import NetworkSettings
from utils import SingleProcess
Callback = Policy = compile_methods = main = seed_all = lambda *args: None
prepared = lambda train: train
class Ranks(SingleProcess):
    started, divide = staticmethod(lambda device: ALONE), staticmethod(lambda flag, count: count)
ALONE = Ranks()
@dataclass(frozen=True, kw_only=True)
class RunSettings(NetworkSettings):
    env: str = "Pendulum-v0"; seed: int = 0; total_timesteps: int = 0; reward_shaping: str = ""; device: str = "cpu"
    env_kwargs: None = None
    frame_stack: int = 1
    check = lambda self, *args: None
class Run:
    timestep = env_seed = resumed = save_due = log_due = 0; generator = None
    unfinished = property(lambda self: self.timestep < self.config.total_timesteps)
    progress = property(lambda self: self.timestep / self.config.total_timesteps)
    __enter__, __exit__ = lambda self: self, lambda self, *args: None
    check_steps = check_finite = log_update = __exit__
    def __init__(self, config, *args): self.config, self.returns = config, []
    def count(self, timesteps, reward=0): self.timestep += timesteps
    def log_episode(self, episode_return, length): self.returns.append(episode_return)
    def log_rewards(self, rewards, done): self.returns.append(rewards.mean() * 200)
"""
DRIVER = """
import json, sys, torch
torch.set_num_threads(1)
from {script} import Config, train
run = train(Config(total_timesteps={timesteps}, compile=False))
assert "mujoco" not in sys.modules and "tensorboard" not in sys.modules
print(json.dumps(run.returns))
"""


@pytest.mark.parametrize(("script", "timesteps"), [(EPOCH, 60_000), (STEP, 25_000)], ids=["epoch", "step"])
def test_a_script_trains_pendulum_with_a_stub_in_place_of_the_run(tmp_path, script, timesteps):
    """A random policy has a return of about -1200."""
    for name in (script, "networks.py", "utils.py"):
        shutil.copy(PROJECT / name, tmp_path)
    shutil.copytree(PROJECT / "environments", tmp_path / "environments")
    (tmp_path / "training.py").write_text(STUB)
    code = DRIVER.format(script=script.removesuffix(".py"), timesteps=timesteps)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    returns = json.loads(result.stdout)
    first, last = returns[:10], returns[-10:]
    assert sum(first) / 10 < -900
    assert sum(last) / 10 > -500
