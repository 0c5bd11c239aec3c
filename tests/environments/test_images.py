"""Images: recognized by their space, kept as bytes, and seen by convolutions; in both scripts, and after training."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import EVALUATE, check_resuming, sealed
from gymnasium import spaces
from torch import nn

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from environments import EnvironmentFault, UsageError, advice, make_env, make_maps, make_vector_env, reset_all
from networks import Critic, NetworkSettings, make_actor
from training import evaluate, load_policy
from training.checkpoint import load_checkpoint
from utils import ObservationNormalizer

BYTES = spaces.Box(0, 255, (12, 16, 3), np.uint8)
GRID = spaces.Box(0, 1, (10, 10, 4), np.bool_)


class Shows(gym.Env):
    """Shows a bright square at the left or the right; the action must name the side. `kind` is how it is shown."""

    SPACES = {  # noqa: RUF012
        "bytes": BYTES,
        "grid": GRID,
        "first": spaces.Box(0, 255, (1, 10, 12), np.uint8),
        "mixed": spaces.Dict(
            goal=spaces.Box(-1, 1, (2,)), image=BYTES, speed=spaces.Discrete(2), second=spaces.Dict(image=GRID)
        ),
    }

    def __init__(self, kind="grid"):
        self.kind, self.observation_space, self.action_space = kind, self.SPACES[kind], spaces.Discrete(2)

    def seen(self):
        self.side = int(self.np_random.integers(2))
        images = {}
        for space in (BYTES, GRID, self.SPACES["first"]):
            image = np.zeros(space.shape, space.dtype)
            columns = slice(1, 4) if self.side == 0 else slice(-4, -1)
            rows = int(self.np_random.integers(1, 6))
            view = image[0] if space.shape[0] == 1 else image[..., 0]
            view[rows : rows + 3, columns] = space.high.max()
            images[space.shape] = image
        if self.kind != "mixed":
            return images[self.observation_space.shape]
        numbers = {"goal": self.np_random.normal(0, 9, 2).astype(np.float32), "speed": 1}
        return {**numbers, "image": images[BYTES.shape], "second": {"image": images[GRID.shape]}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.seen(), {}

    def step(self, action):
        reward, self.t = float(action == self.side), self.t + 1
        return self.seen(), reward, False, self.t == 20, {}


def layout_of(space):
    return make_maps(make_env("mine", lambda: Fixed(space)))[1].layout


class Fixed(gym.Env):
    """Any observation space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("shape", "dtype", "channels_first", "high"),
    [
        ((10, 10, 4), np.bool_, False, 1),
        ((84, 84, 3), np.uint8, False, 255),
        ((4, 84, 84), np.uint8, True, 255),
        ((3, 5, 5), np.uint8, True, 255),
        ((5, 5, 3), np.uint8, False, 255),
        ((8, 8, 12), np.uint8, True, 255),
    ],
)
def test_images_are_recognized_by_their_space(shape, dtype, channels_first, high):
    (image,) = layout_of(spaces.Box(0, high, shape, dtype)).images
    assert (image.shape, image.channels_first, image.high) == (shape, channels_first, high)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((84, 84, 3), np.float32),
        ((84, 84), np.uint8),
        ((128,), np.uint8),
        ((2, 2, 3), np.uint8),
        ((3, 1, 64), np.uint8),
        ((100, 2, 100), np.uint8),
        ((10, 10, 0, 3), np.uint8),
    ],
)
def test_all_else_is_no_image_and_large_arrays_come_with_a_hint(shape, dtype):
    space = spaces.Box(0, 1, shape, dtype)
    if 0 in shape:
        space = spaces.Dict(a=space, b=spaces.Box(-1, 1, (1,)))
    assert layout_of(space).images == ()
    lines = advice(make_env("mine", lambda: Fixed(space)))
    assert len(lines) == (np.prod(shape) > 1000)
    assert all("uint8" in line and "(height, width, channels)" in line for line in lines)


@pytest.mark.parametrize("side", [3, 5, 10, 13, 14, 35, 36, 64, 84, 96, 160, 256])
@pytest.mark.parametrize("frames", [1, 4])
def test_the_encoder_fits_an_image_of_any_size(side, frames):
    env = make_env("mine", lambda: Fixed(spaces.Box(0, 255, (side, side + 7, 3), np.uint8)), frame_stack=frames)
    critic = Critic(make_maps(env)[1].layout, NetworkSettings(), last_gain=1.0)
    assert critic.value[0].size <= 10_000
    observations = torch.from_numpy(np.stack([env.reset()[0] for _ in range(3)]))
    assert observations.dtype == torch.uint8
    together = critic(observations)
    assert together.shape == (3,)
    torch.testing.assert_close(together[1], critic(observations[1]))
    torch.testing.assert_close(together.view(3, 1), critic(observations.view(3, 1, -1)))


@pytest.mark.parametrize("frames", [1, 3])
def test_what_convolutions_see_is_the_image_in_its_order(frames):
    """Against a convolution of PyTorch on the image as the environment has it, frames stacked as channels."""
    env = make_env("mine", Shows, {"kind": "mixed"}, frame_stack=frames)
    observation_map = make_maps(env)[1]
    layout, raw = observation_map.layout, [Shows("mixed") for _ in range(frames)]
    raw = [shows.reset(seed=i)[0] for i, shows in enumerate(raw)]
    (flat,), single = observation_map(raw if frames > 1 else raw[0])
    assert single
    critic = Critic(layout, NetworkSettings(layer_norm=False))
    encoder = critic.value[0]
    features = encoder(torch.from_numpy(flat).float())
    expected = []
    for images, (convolution, *_) in zip(
        ([r["image"] for r in raw], [r["second"]["image"] for r in raw]), encoder.encoders, strict=True
    ):
        pixels = torch.cat([torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1) for image in images])
        pixels /= 255 if images[0].dtype == np.uint8 else 1
        assert pixels.max() == 1
        output = nn.functional.conv2d(pixels[None], convolution.weight, stride=convolution.stride)
        expected.append(nn.functional.leaky_relu(output).movedim(1, -1).flatten())
    numbers = [np.concatenate((r["goal"], [0, 1])).astype(np.float32) for r in raw]
    torch.testing.assert_close(features, torch.cat([*expected, torch.from_numpy(np.concatenate(numbers))]))


@pytest.mark.parametrize("frames", [1, 3])
def test_channels_may_come_first_or_last(frames):
    env = make_env("mine", lambda: Fixed(spaces.Box(0, 255, (3, 12, 16), np.uint8)), frame_stack=frames)
    last_env = make_env("mine", lambda: Fixed(BYTES), frame_stack=frames)
    first, last = (Critic(make_maps(e)[1].layout, NetworkSettings(), last_gain=1.0) for e in (env, last_env))
    last.load_state_dict(first.state_dict())
    images = torch.randint(0, 256, (5, frames, 3, 12, 16), dtype=torch.uint8)
    torch.testing.assert_close(first(images.flatten(1)), last(images.movedim(2, -1).flatten(1)))


def test_a_mask_comes_after_images_and_numbers():
    space = spaces.Dict(action_mask=spaces.MultiBinary(2), a=spaces.Box(-1, 1, (1,)), image=GRID)
    env = make_env("mine", lambda: Fixed(space))
    action_map, observation_map = make_maps(env)
    assert observation_map.layout[0] == 403
    assert observation_map.layout.unchanged == (400, 2)
    actor = make_actor(observation_map.layout, action_map.nvec, action_map.bounded, NetworkSettings())
    flat = np.zeros((2, 403), np.float32)
    flat[:, -2:] = [[0, 1], [1, 0]]
    normalizer = ObservationNormalizer(403, unchanged=observation_map.layout.unchanged)
    normalizer.update(torch.from_numpy(flat))
    states = normalizer.normalize(torch.from_numpy(flat))
    torch.testing.assert_close(states[:, -2:], torch.from_numpy(flat[:, -2:]))
    assert actor(states).base_dist.probs.argmax(-1).tolist() == [[1], [0]]


def test_wrappers_around_an_environment_of_ours_do_not_change_the_order():
    """As `evaluate.py --video` makes them."""
    plain = make_env("mine", Shows, {"kind": "mixed"}, frame_stack=2)
    wrapped = make_env("mine", lambda: gym.Wrapper(make_env("mine", Shows, {"kind": "mixed"})), frame_stack=2)
    assert make_maps(wrapped)[1].layout == make_maps(plain)[1].layout
    for env in (plain, wrapped):
        env.reset(seed=4)
    np.testing.assert_array_equal(plain.step(1)[0], wrapped.step(1)[0])


def test_copies_with_other_images_are_refused():
    made = iter([spaces.Box(0, 255, shape, np.uint8) for shape in ((3, 8, 10), (8, 10, 3))])
    with pytest.raises(UsageError, match="copies of mine have observation spaces of different shapes"):
        make_vector_env("mine", 2, lambda: Fixed(next(made)))


def test_bytes_stay_bytes_until_the_network():
    envs = make_vector_env("mine", 4, Shows, {"kind": "bytes"}, frame_stack=2)
    observations = reset_all(envs, 0)
    assert observations.dtype == np.uint8
    action_map, observation_map = make_maps(envs)
    learner = epoch.A2C(epoch.Config(num_envs=4, sample_size=8, compile=False), observation_map.layout, action_map)
    seen = []
    learner.actor.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    noise = learner.actor.network.noise(4)
    learner.act(torch.from_numpy(observations), noise)
    assert seen == [torch.uint8]


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (np.full((12, 16, 3), 0.5, np.float32), "float32"),
        (np.full((12, 16, 3), 300), "int64"),
        (np.zeros((12, 17, 3), np.uint8), r"\(12, 17, 3\)"),
        (np.zeros((3, 12, 16), np.uint8), r"\(3, 12, 16\)"),  # as many numbers, in another order
        (np.zeros((12, 16), np.uint8), r"\(12, 16\)"),
    ],
)
def test_an_image_of_another_kind_than_declared_is_named(image, why):
    env = make_env("mine", lambda: Fixed(BYTES))
    env.env.reset = lambda **_: (image, {})
    with pytest.raises(EnvironmentFault, match=f"{why}.*should be one of Box.*uint8"):
        env.reset(seed=0)


@pytest.mark.parametrize(
    ("given", "with_images", "without"),
    [({}, (1, 0.01), (10, 0.0)), ({"critic_updates": 3, "ent_coef": 0.0}, (3, 0.0), (3, 0.0))],
)
def test_with_images_the_epoch_update_has_other_defaults_which_flags_change(given, with_images, without):
    config = epoch.Config(env="any", num_envs=2, sample_size=8, compile=False, **given)
    for env, expected in ((Shows(), with_images), (gym.make("CartPole-v1"), without)):
        action_map, observation_map = make_maps(env)
        learner = epoch.A2C(config, observation_map.layout, action_map)
        assert (learner.critic_updates, learner.ent_coef) == expected


@pytest.mark.slow
def test_both_updates_learn_from_images(tmp_path):
    settings = {"env": "mine", "env_kwargs": {"kind": "mixed"}, "img_dir": tmp_path, "quiet": True, "compile": False}
    for script, timesteps in ((epoch, 4_096), (step, 1_500)):
        run = script.train(
            script.Config(run_dir=tmp_path / script.Config.script, total_timesteps=timesteps, **settings), env_fn=Shows
        )
        score = evaluate(run.policy, "mine", 20, 0, env_fn=Shows, env_kwargs={"kind": "mixed"})
        assert score["mean_return"] > 17


@pytest.mark.slow
@pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])
def test_minatar_works_as_written_and_is_resumed_to_the_bit(script, forked, tmp_path):
    settings = {"env": "MinAtar/Breakout-v0", "total_timesteps": 1_152, "frame_stack": 2, "quiet": True}
    check_resuming(script, tmp_path, **settings)
    result = forked(EVALUATE, "whole", "--episodes", 3)
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["mean_return"] >= 0


@pytest.mark.slow
def test_a_policy_takes_raw_images_one_or_many_and_is_exported(forked, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    config = epoch.Config(
        env="mine", run_dir=tmp_path / "run", img_dir=tmp_path, total_timesteps=512, frame_stack=2, quiet=True
    )
    epoch.train(config, env_fn=Shows)
    policy, _ = load_policy(tmp_path / "run")
    images = np.random.default_rng(0).random((5, 2, 10, 10, 4)) < 0.3
    many = policy(images)
    assert many.shape == (5,)
    assert [policy(image).item() for image in images] == many.tolist()
    flat = images.reshape(5, -1)
    assert policy(flat).tolist() == many.tolist()
    assert policy(torch.from_numpy(images)).tolist() == policy(flat.astype(float)).tolist() == many.tolist()
    assert policy(images[0].reshape(2, -1)).item() == many[0]
    with pytest.raises(UsageError, match=r"shape \(10, 10, 4\)"):
        policy(images[0, 0])
    with pytest.raises(UsageError, match="an observation does not fit its space: an image of float64"):
        policy(images[0] * 0.5)
    for suffix in ("onnx", "pt2"):
        result = forked(EVALUATE, "run", "--export", f"policy.{suffix}")
        assert result.returncode == 0, result.stderr
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    (actions,) = session.run(None, {"observations": flat.astype(np.uint8)})
    assert actions.tolist() == many.tolist()
    program = torch.export.load(tmp_path / "policy.pt2").module()
    assert program(torch.from_numpy(flat.astype(np.uint8))).tolist() == many.tolist()


def test_a_run_with_other_networks_for_images_is_refused(tmp_path):
    config = epoch.Config(env="mine", run_dir=tmp_path / "run", img_dir=tmp_path, total_timesteps=128, quiet=True)
    epoch.train(config, env_fn=Shows)
    state = load_checkpoint(tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").write_bytes(sealed(state | {"format": 11}))
    with pytest.raises(UsageError, match="was trained with other networks for images; use the commit in its"):
        load_policy(tmp_path / "run")
