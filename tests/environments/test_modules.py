"""Modules of a user's own, where the scripts find them."""

import subprocess
import sys

import pytest
from conftest import EPOCH, PROJECT

from environments import UsageError, make_env
from environments.making import PACKAGES

MINE = """
import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
gym.register("Mine-v0", entry_point=CartPoleEnv, max_episode_steps=50)
def potential(observations):
    return observations[:, 0]
"""


def run(tmp_path, *args):
    command = [sys.executable, PROJECT / EPOCH, "--total-timesteps", "512", "--run-dir", "run", *args]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.slow
def test_a_module_in_the_current_directory_is_found(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    result = run(tmp_path, "--env", "mine:Mine-v0", "--reward-shaping", "mine:potential")
    assert (result.returncode, result.stderr) == (0, "")
    command = [sys.executable, PROJECT / "evaluate.py", "run", "--episodes", "2"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "args", "words"),
    [
        ("from utils import helper", ["--env", "mine:Mine-v0"], "utils is a module of these scripts: rename yours"),
        ("import networks.layers", ["--env", "mine:Mine-v0"], "networks"),
        ("1 / 0", ["--env", "mine:Mine-v0"], "module 'mine' cannot be imported: division by zero"),
        ("x = 1", ["--reward-shaping", "mine:x"], "mine has no function 'x'"),
        ("(", ["--reward-shaping", "mine:x"], "module 'mine' cannot be imported"),
        ("", ["--reward-shaping", "mine"], "must be built-in or module:function"),
        ("", ["--env", "utils:Mine-v0"], "utils is a module of these scripts: rename yours"),
        ("", ["--env-fn", "utils:helper"], "utils has no function 'helper'; utils is a module of these scripts"),
    ],
)
def test_a_module_that_cannot_be_used_is_one_line(tmp_path, code, args, words):
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "utils.py").write_text("def helper(): ...")
    result = run(tmp_path, *args)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert words in line
    assert not (tmp_path / "run").exists()


def test_a_package_that_is_installed_is_found_and_one_that_is_not_is_named(tmp_path, monkeypatch):
    """A package that depends on Gymnasium may register environments when it is imported."""
    package, info = tmp_path / "plugged", tmp_path / "plugged-1.0.dist-info"
    package.mkdir(), info.mkdir()
    (package / "__init__.py").write_text(MINE.replace("Mine-v0", "Plugged/Mine-v0"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\nRequires-Dist: gymnasium>=1\n")
    (info / "top_level.txt").write_text("plugged\n")
    monkeypatch.syspath_prepend(tmp_path)
    make_env("Plugged/Mine-v0").close()
    monkeypatch.setitem(PACKAGES, "Nowhere/", "nowhere-envs")
    with pytest.raises(UsageError, match="--env Nowhere/Pong-v5 needs the package nowhere-envs: pip install"):
        make_env("Nowhere/Pong-v5")
