"""Spaces of several parts: flattened for the networks, and back for the environment and for a person."""

import enum

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
from environments import ActionMap, ObservationMap, UsageError, advice, make_env, observation_tensor
from environments.structure import flat_actions, from_data, numeric_part, structured, to_data
from training import load_policy

CHOICES = spaces.Dict(
    a=spaces.Discrete(3, start=5), b=spaces.Tuple([spaces.MultiBinary(2), spaces.MultiDiscrete([2, 4])])
)
NUMBERS = spaces.Tuple([spaces.Box(-2, 2, (2,)), spaces.Dict(c=spaces.Box(0, 9, (1, 2), np.int64))])


@pytest.mark.parametrize("space", [CHOICES, NUMBERS], ids=["discrete", "continuous"])
def test_actions_of_several_parts_reach_the_environment_in_its_form(space):
    flat = flat_actions(space, "mine")
    flat.seed(0)
    for _ in range(20):
        assert space.contains(structured(space, flat.sample()))
    if space is CHOICES:
        assert structured(space, np.array([7, 0, 1, 1, 3]))["a"] == 7
    action_map = ActionMap(flat)
    sampled = torch.zeros(4, action_map.size, dtype=torch.float32 if action_map.continuous else torch.int64)
    assert all(space.contains(structured(space, action)) for action in action_map(sampled).numpy())


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint16])
def test_integers_are_rounded_to_the_nearest(dtype):
    action_map = ActionMap(spaces.Box(0, 10, (1,), dtype))
    actions = action_map(torch.tensor([[-3.0], [-0.29], [0.29], [3.0]])).numpy()
    assert (actions.ravel().tolist(), actions.dtype) == ([0, 4, 6, 10], dtype)


@pytest.mark.parametrize("bound", [np.finfo(np.float32).max, 1e10, np.inf])
def test_a_huge_bound_is_none(bound):
    action_map = ActionMap(spaces.Box(-bound, bound, (2,)))
    assert action_map.bounded == [False, False]
    np.testing.assert_array_equal(action_map(torch.tensor([[0.5, -2.0]])), [[0.5, -2.0]])


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1, 1, (2, 3)),
        spaces.Box(np.array([0.0, -np.inf]), np.array([1.0, 5.0]), dtype=np.float64),
        spaces.Box(0, 255, (4, 4, 3), np.uint8),
        spaces.Discrete(4, start=-1),
        spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 1], [0, 0]]),
        spaces.MultiBinary((2, 2)),
        spaces.Text(4, charset="abc"),
        spaces.Dict(empty=spaces.Box(-1, 1, (0,)), one=spaces.OneOf([spaces.Discrete(2), spaces.Box(0, 1)])),
        CHOICES,
        NUMBERS,
    ],
    ids=str,
)
def test_a_space_survives_as_plain_data(space):
    assert from_data(to_data(space)) == space


class Part(enum.StrEnum):
    ARM = "arm"


@pytest.mark.parametrize("key", [Part.ARM, np.int64(1), np.str_("arm")], ids=repr)
def test_a_checkpoint_with_keys_that_are_no_plain_data_can_be_loaded(tmp_path, key):
    class Keyed(gym.Env):
        observation_space = spaces.Dict({key: spaces.Box(-1, 1, (2,))})
        action_space = spaces.Box(-1, 1, (1,))

        def reset(self, **kwargs):
            return {key: np.zeros(2, np.float32)}, {}

        def step(self, action):
            return {key: np.zeros(2, np.float32)}, 0.0, True, False, {}

    sizes = {"num_envs": 2, "sample_size": 4, "total_timesteps": 4}
    settings = {"env": "Keyed", "quiet": True, "compile": False, "run_dir": tmp_path / "run", "img_dir": tmp_path}
    run = epoch.train(epoch.Config(**settings, **sizes), env_fn=Keyed)
    policy, _ = load_policy(run.directory, env_fn=Keyed)
    assert policy({key: np.zeros(2, np.float32)}).shape == (1,)
    epoch.train(epoch.Config(resume=run.directory, total_timesteps=8), env_fn=Keyed)


def test_what_cannot_be_flattened_is_left_out_of_a_dict():
    class Mission(spaces.Space):
        """A kind of space that Gymnasium does not know."""

    inner = spaces.Dict(deep=Mission(), speed=spaces.Box(-1, 1))
    space = spaces.Dict(mission=Mission(), path=spaces.Sequence(spaces.Discrete(2)), inner=inner)
    assert numeric_part(space) == spaces.Dict(inner=spaces.Dict(speed=spaces.Box(-1, 1)))
    assert numeric_part(Mission()) is None

    class Mine(gym.Env):
        observation_space, action_space = space, spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return {"mission": "go", "path": (1,), "inner": {"deep": 0, "speed": np.array([0.5])}}, {}

    env = make_env("mine", Mine)
    np.testing.assert_array_equal(env.reset(seed=0)[0], [0.5])
    assert advice(env) == ["mine: mission, path, deep of its observations cannot be flattened, and are left out"]


def test_advice_for_images_and_for_an_environment_that_normalizes():
    def make():
        env = gym.make("Pendulum-v1")
        return gym.wrappers.NormalizeReward(gym.wrappers.NormalizeObservation(env))

    lines = advice(make_env("mine", make))
    assert [line.split()[0] for line in lines] == ["NormalizeReward", "NormalizeObservation"]
    assert advice(make_env("CartPole-v1")) == []


@pytest.mark.parametrize(
    ("space", "raw"),
    [
        (spaces.Discrete(4), 2),
        (spaces.Box(-1, 1, (3,)), [0.1, 0.2, 0.3]),
        (spaces.Box(0, 255, (4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)),
        (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8)),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Box(-1, 1, (2,))), {"a": 1, "b": np.zeros(2, np.float32)}),
        (spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]), (1, 2)),
    ],
    ids=str,
)
def test_observations_are_taken_raw_or_flat_one_or_many(space, raw):
    convert = ObservationMap(space)
    one = spaces.flatten(space, np.array(raw) if isinstance(raw, list) else raw).astype(np.float64)
    for observations, many in ((raw, False), ([raw, raw, raw], True), (one, False), (np.stack([one] * 3), True)):
        flat, single = convert(observations)
        assert (flat.shape, single) == ((3 if many else 1, len(one)), not many)
        np.testing.assert_allclose(flat, np.stack([one] * len(flat)), rtol=1e-6)


def test_integers_are_observations_of_a_discrete_space():
    flat, single = ObservationMap(spaces.Discrete(3))([0, 2, 1])
    assert (flat.tolist(), single) == ([[1, 0, 0], [0, 0, 1], [0, 1, 0]], False)


@pytest.mark.parametrize(
    ("space", "wrong"),
    [
        (spaces.Dict(a=spaces.Box(0, 1, (2,)), b=spaces.Box(0, 1, (1,))), {"a": np.zeros(1), "b": np.zeros(2)}),
        (spaces.Tuple([spaces.Discrete(3), spaces.Text(3)]), (-1, "a")),
        (spaces.Box(0, 1, ()), "abc"),
        (spaces.Box(0, 1, (3,)), ["a", "b", "c"]),
        (spaces.Box(0, 1, (2, 2)), [[1, 2], [3]]),
        (spaces.Box(0, 1, (2,)), np.array([None, 1])),
    ],
    ids=str,
)
def test_what_is_no_observation_is_refused(space, wrong):
    with pytest.raises(UsageError, match="must be "):
        ObservationMap(space)(wrong)


@pytest.mark.parametrize("wrong", [[[3]], np.zeros(3), np.zeros((2, 5)), 9, "left", None, []], ids=str)
def test_observations_of_another_size_are_refused_in_a_line(wrong):
    with pytest.raises(UsageError, match=r"must be \(N, 4\), \(4,\) or of Discrete\(4\)") as error:
        ObservationMap(spaces.Discrete(4))(wrong)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dtype", "kind"),
    [
        (np.bool_, torch.uint8),
        (np.uint8, torch.uint8),
        (np.int16, torch.float32),
        (np.float16, torch.float32),
        (np.float32, torch.float32),
        (np.int64, torch.float64),
        (np.float64, torch.float64),
    ],
)
def test_wide_numbers_keep_their_precision_until_the_mean_is_subtracted_and_bytes_stay_bytes(dtype, kind):
    tensor = observation_tensor(np.ones((2, 3), dtype), "cpu")
    assert tensor.dtype == kind
