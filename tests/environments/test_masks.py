"""Invalid actions: wherever the mask comes from, an action that it excludes is never played."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import EPOCH, EVALUATE, STEP
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from environments import EnvironmentFault, UsageError, make_env
from networks import CategoricalActor, NetworkSettings, ObservationLayout
from training import evaluate, load_policy

ACTIONS = {
    "Discrete": spaces.Discrete(5, start=-2),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2], start=[1, 0]),
    "Tuple": spaces.Tuple([spaces.Discrete(2), spaces.MultiBinary(2)]),
}
SIZES = {"Discrete": [5], "MultiDiscrete": [3, 2], "Tuple": [2, 2, 2]}
SOURCES = ["info", "method", "attribute", "observation"]
PLAYED = []


class Masked(gym.Env):
    """Half of the actions are invalid at any time; playing one of these is an error. Rewards are for the last entry."""

    def __init__(self, source="info", actions="Discrete"):
        self.source, self.sizes = source, SIZES[actions]
        self.action_space = ACTIONS[actions]
        self.observation_space = spaces.Box(-1, 1, (2,))
        if source == "observation":
            mask = spaces.MultiBinary(sum(self.sizes))
            self.observation_space = spaces.Dict({"action_mask": mask, "sensors": self.observation_space})
        elif source == "method":
            self.action_masks = lambda: self.mask
        elif source == "info":
            self.action_mask = True
        else:
            self.action_mask = np.ones(sum(self.sizes))

    def draw(self):
        draws = [self.np_random.permutation(np.arange(n) <= n // 2) for n in self.sizes]
        self.mask = np.concatenate(draws)
        if self.source == "attribute":
            self.action_mask = self.mask
        sensors = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        given = draws[0].astype(np.int8) if len(draws) == 1 else tuple(draws)
        info = {"action_mask": given} if self.source == "info" else {}
        if self.source == "observation":
            return {"action_mask": self.mask.astype(np.int8), "sensors": sensors}, info
        return sensors, info

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.draw()

    def step(self, action):
        self.steps += 1
        entries = np.concatenate([np.ravel(part) for part in action]) if isinstance(action, tuple) else np.ravel(action)
        start = {1: [-2], 2: [1, 0], 3: [0, 0, 0]}[len(self.sizes)]
        first = np.cumsum([0, *self.sizes[:-1]])
        assert self.mask[first + entries - start].all(), f"{action} is invalid"
        PLAYED.append(int(entries[-1]))
        observation, info = self.draw()
        done = self.steps == 20
        if done:  # with or without a mask, which may exclude all actions: none follows
            self.mask[:] = 0
            info = {} if self.np_random.random() < 0.5 else {key: np.zeros(sum(self.sizes)) for key in info}
        return observation, float(entries[-1]), done, False, info


def settings(tmp_path, **more):
    return {"env": "Masked", "run_dir": tmp_path / "run", "img_dir": tmp_path, "quiet": True} | more


@pytest.mark.slow
@pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])
@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("source", ["info", "observation"])
def test_invalid_actions_are_never_played(script, source, actions, tmp_path):
    def make():
        return Masked(source, actions)

    long = (script, source, actions) == (epoch, "info", "Discrete")
    sizes = {"num_envs": 16, "sample_size": 512, "critic_updates": 1} if script is epoch else {}
    run = script.train(script.Config(**settings(tmp_path, total_timesteps=100_000 if long else 2_048), **sizes), make)
    for policy in (run.policy, load_policy(run.directory)[0]):
        for stochastic in (False, True):
            evaluate(policy, "Masked", 5, seed=1, stochastic=stochastic, env_fn=make)
    if long:  # the policy has learned the last entry's largest valid value: -2 to 2, three of them valid
        PLAYED.clear()
        evaluate(run.policy, "Masked", 20, seed=2, env_fn=make)
        assert np.mean(PLAYED) > 1.2


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("actions", ACTIONS)
def test_the_mask_comes_last_in_the_observation(source, actions):
    env = make_env("Masked", lambda: Masked(source, actions))
    observation, _ = env.reset(seed=0)
    size = sum(SIZES[actions])
    assert observation.shape == (2 + size,)
    np.testing.assert_array_equal(observation[2:], env.unwrapped.mask)
    env.close()


def test_probabilities_are_those_of_the_valid_actions():
    """Compared with a softmax over the valid values only."""
    actor = CategoricalActor(ObservationLayout(7, mask_size=5), [3, 2], NetworkSettings())
    torch.nn.init.normal_(actor.logits[-1].weight)
    mask = torch.tensor([[1, 0, 1, 1, 1], [0, 1, 0, 0, 1], [1, 1, 1, 1, 1.0]])
    observations = torch.cat((torch.randn(3, 2), mask), dim=1)
    pi = actor(observations)
    logits = actor.logits(observations).unflatten(-1, (2, 3)).detach().numpy().astype(np.float64)
    valid = mask.bool().numpy()
    for row in range(3):
        probabilities, entropy = [], 0.0
        for entry, part in enumerate((valid[row, :3], valid[row, 3:])):
            weights = np.exp(logits[row, entry, : len(part)]) * part
            p = weights / weights.sum()
            probabilities.append(p)
            entropy -= sum(q * np.log(q) for q in p if q > 0)
        assert pi.entropy()[row].item() == pytest.approx(entropy, abs=1e-5)
        for first, p in enumerate(probabilities[0]):
            for second, q in enumerate(probabilities[1]):
                found = pi.log_prob(torch.tensor([[first, second]] * 3))[row].exp().item()
                assert found == pytest.approx(p * q, abs=1e-6)
    (gradient,) = torch.autograd.grad(pi.entropy().sum() + pi.log_prob(pi.mode).sum(), actor.logits[-1].weight)
    assert gradient.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_taxi_is_trained_exported_and_played(name, forked, tmp_path):
    taxi = max(name for name in gym.registry if name.startswith("Taxi-v"))
    result = forked(name, "--env", taxi, "--total-timesteps", 2_048, "--run-dir", "run")
    assert (result.returncode, result.stderr) == (0, "")
    result = forked(EVALUATE, "run", "--episodes", 2)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["mean_return"] >= -200  # an invalid pickup costs 10
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    assert forked(EVALUATE, "run", "--export", "policy.onnx").returncode == 0
    policy, _ = load_policy(tmp_path / "run")
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, (50, 6))
    masks[:, 0] = 1
    observations = [{"observation": int(rng.integers(500)), "action_mask": mask} for mask in masks.astype(np.int8)]
    flat = np.zeros((50, 506))
    flat[np.arange(50), [observation["observation"] for observation in observations]] = 1
    flat[:, 500:] = masks
    np.save(tmp_path / "observations.npy", flat)
    run = "import numpy as n, onnxruntime as o; s = o.InferenceSession('policy.onnx')\n"
    run += "n.save('actions.npy', s.run(['actions'], {'observations': n.load('observations.npy')})[0])"
    subprocess.run([sys.executable, "-c", run], cwd=tmp_path, check=True)
    actions = np.load(tmp_path / "actions.npy")
    np.testing.assert_array_equal(actions, policy(observations))
    np.testing.assert_array_equal(actions, policy(flat))
    assert masks[np.arange(50), actions].all()


class Board(Masked):
    """Its mask is a property, which needs a reset."""

    def __init__(self):
        super().__init__("property")
        del self.__dict__["action_mask"]

    @property
    def action_mask(self):
        return self.board

    @action_mask.setter
    def action_mask(self, mask):
        self.__dict__["action_mask"] = mask

    def draw(self):
        result = super().draw()
        self.board = self.mask
        return result


def test_a_property_that_needs_a_reset_is_a_mask():
    env = make_env("Board", Board)
    observation, _ = env.reset(seed=0)
    np.testing.assert_array_equal(observation[2:], env.unwrapped.mask)


def test_the_last_observation_of_a_truncated_episode_has_its_mask():
    masks = []
    for source in ("info", "method"):
        env = make_env("Masked", lambda source=source: gym.wrappers.TimeLimit(Masked(source), 3))
        observation, _ = env.reset(seed=0)
        for _ in range(3):
            observation, _, _, truncated, _ = env.step(np.int64(observation[2:].argmax() - 2))
        assert truncated
        np.testing.assert_array_equal(observation[2:], env.unwrapped.mask)
        masks.append(observation)
    np.testing.assert_array_equal(*masks)


def change(env, **attributes):
    for name, value in attributes.items():
        setattr(env, name, value)
    return env


def test_faults_get_a_line():
    env = make_env("Masked", lambda: change(Masked(), draw=lambda: (np.zeros(2, np.float32), {"action_mask": [0] * 5})))
    with pytest.raises(
        EnvironmentFault, match=r"returned the action_mask .* which should be 1 for at least one action"
    ):
        env.reset(seed=0)
    env = make_env("Masked", lambda: change(Masked(), draw=lambda: (np.zeros(2, np.float32), {"action_mask": [1] * 4})))
    with pytest.raises(EnvironmentFault, match=r"the action_mask has the shape \(4,\), which must be \(5,\)"):
        env.reset(seed=0)
    env = make_env(
        "Masked", lambda: change(Masked(), draw=lambda: (np.zeros(2, np.float32), {"action_mask": [-1] * 5}))
    )
    with pytest.raises(EnvironmentFault, match="1 for valid actions, 0 for others"):
        env.reset(seed=0)
    env = make_env("Masked", lambda: change(Masked(), draw=lambda: (np.zeros(2, np.float32), {})))
    with pytest.raises(EnvironmentFault, match=r"must be an array, in info.*; set self.action_mask = False if"):
        env.reset(seed=0)
    env = make_env("Masked", lambda: change(Masked("attribute"), action_mask=None))
    with pytest.raises(EnvironmentFault, match="before the first reset"):
        env.reset(seed=0)
    env = make_env("Masked", lambda: change(Masked("info"), action_mask=None))
    with pytest.raises(EnvironmentFault, match="which is used only if it has an attribute action_mask before the"):
        env.reset(seed=0)
    wrong = spaces.Dict({"action_mask": spaces.MultiBinary(4), "sensors": spaces.Box(-1, 1, (2,))})
    with pytest.raises(UsageError, match=r"action_mask is MultiBinary\(4\), which must have an entry per value"):
        make_env("Masked", lambda: change(Masked("observation"), observation_space=wrong))
    with pytest.raises(UsageError, match="--frame-stack 2 is not possible with Masked, which has an action_mask"):
        make_env("Masked", Masked, frame_stack=2)


def test_an_old_step_gets_the_line_that_it_has_without_a_mask():
    env = make_env("Masked", lambda: change(Masked(), step=lambda action: (np.zeros(2, np.float32), 0.0, False, {})))
    env.reset(seed=0)
    with pytest.raises(EnvironmentFault, match=r"step\(\) returned a tuple of 4"):
        env.step(np.int64(0))


def test_a_mask_beside_continuous_actions_is_an_observation_like_others():
    env = make_env("Masked", lambda: change(Masked("observation"), action_space=spaces.Box(-1, 1, (1,))))
    observation, _ = env.reset(seed=0)
    assert env.mask_size == 0
    np.testing.assert_array_equal(observation[:5], env.unwrapped.mask)  # the order of the Dict
