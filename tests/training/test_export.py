"""An exported policy needs nothing of this project, and acts as the policy does."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import EVALUATE, PROJECT

import a2c_algorithm_epoch_update as epoch
from training import load_policy

ROBOT = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession("policy.onnx")
(given,) = session.get_inputs()
observations = np.load("observations.npy")
(actions,) = session.run(["actions"], {"observations": observations})
(one,) = session.run(["actions"], {"observations": observations[:1]})
np.testing.assert_allclose(one, actions[:1], atol=1e-5)
np.save("actions.npy", actions)
assert not {"torch", "gymnasium", "training"} & sys.modules.keys()
"""
SPACES = {
    "vectors": (gym.spaces.Box(-5, 5, (3,)), gym.spaces.Box(np.float32([-1, 0]), np.float32([3, np.inf]))),
    "integers": (gym.spaces.Box(0, 2**31 - 1, (3,), np.uint32), gym.spaces.Box(-1, 1, (1,))),
    "doubles": (gym.spaces.Box(-5, 5, (3,), np.float64), gym.spaces.Box(-2, 2, (2, 2))),
    "parts": (
        gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (2,)), "b": gym.spaces.Discrete(3)}),
        gym.spaces.MultiDiscrete([3, 2], start=[1, -1]),
    ),
    "choices": (gym.spaces.Box(-5, 5, (3,)), gym.spaces.Discrete(4, start=-2)),
}


class Drawn(gym.Env):
    """Spaces of any kind, with random observations and rewards."""

    def __init__(self, observations, actions):
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        return self.observation_space.sample(), float(np.random.normal()), self.steps == 10, False, {}  # noqa: NPY002


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_onnxruntime_alone_acts_as_the_policy_does(name, forked, tmp_path):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    settings = {"total_timesteps": 512, "run_dir": tmp_path / "run", "img_dir": tmp_path, "quiet": True}
    epoch.train(epoch.Config(env="Drawn", **settings), env_fn=lambda: Drawn(*SPACES[name]))
    for file in ("policy.onnx", "policy.pt2"):
        result = forked(EVALUATE, "run", "--export", file)
        assert (result.returncode, result.stderr) == (0, "")
    policy, _ = load_policy(tmp_path / "run")
    rng = np.random.default_rng(0)
    kind = np.float32 if name in ("vectors", "choices") else np.float64
    observations = rng.normal(0, 3, (50, policy.observation_map.size)).astype(kind)
    if name == "integers":  # differences that float32 does not hold
        observations = 2.0**30 + rng.integers(0, 100, (50, 3))
    np.save(tmp_path / "observations.npy", observations)
    subprocess.run([sys.executable, "-c", ROBOT], cwd=tmp_path, check=True)
    expected = policy(observations)
    actions = np.load(tmp_path / "actions.npy")
    assert (actions.shape, actions.dtype) == (expected.shape, expected.dtype)
    np.testing.assert_allclose(actions, expected, atol=1e-5)
    program = torch.export.load(tmp_path / "policy.pt2").module()
    np.testing.assert_allclose(program(torch.tensor(observations)).numpy(), expected, atol=1e-6)
    assert {path.name for path in tmp_path.iterdir() if "tmp" in path.name} == set()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--export", "policy.txt"], "--export policy.txt must end in .onnx or .pt2"),
        (["--export", "folder.onnx"], "--export folder.onnx is a directory; name a file"),
        (["--export", "policy.pt2", "--policy-map", "map.png"], "cannot be combined"),
        (["--best", "--policy-map", "map.png"], "--policy-map draws the critic, of which --best has none"),
    ],
)
def test_bad_input_gets_a_line(flags, message, forked, tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    result = forked(EVALUATE, PROJECT / "policies" / "Pendulum-v0", *flags)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_a_missing_package_is_named(script, tmp_path):
    command = [PROJECT / "policies" / "Pendulum-v0", "--export", "policy.onnx"]
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'onnx' else find(name, *rest)"
    )
    result = script(EVALUATE, *command)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "needs onnx: pip install onnx" in result.stderr
    assert not (tmp_path / "policy.onnx").exists()
