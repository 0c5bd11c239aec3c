"""What an environment returns: all that is right is accepted, and what is wrong is named."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from environments import EnvironmentFault, UsageError, make_env, make_vector_env, reset_all
from environments.border import IN_USE


class Mine(gym.Env):
    """Returns what it is told to in place of a right part of `step` or `reset`."""

    observation_space, action_space = spaces.Box(-1, 1, (3,)), spaces.Discrete(2)

    def __init__(self, **wrong):
        self.wrong, self.seeds, self.options, self.closed = wrong, [], [], 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.options.append(options)
        self.t = 0
        return self.wrong.get("reset", (np.zeros(3, np.float32), {}))

    def step(self, action):
        self.t += 1
        parts = {
            "observation": np.full(3, self.t / 10, np.float32),
            "reward": float(self.t),
            "terminated": False,
            "truncated": self.t == 5,
            "info": {"t": self.t},
        } | self.wrong
        return self.wrong.get("step", tuple(parts[name] for name in list(parts)[:5]))

    def close(self):
        self.closed += 1


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"reward": np.array([2.0])}, 2.0),
        ({"reward": [2]}, 2.0),
        ({"reward": np.float32(2)}, 2.0),
        ({"reward": True}, 1.0),
        ({"terminated": np.array([True])}, 1.0),
        ({"truncated": np.bool_(True)}, 1.0),
        ({"observation": [0.1, 0.2, 0.3]}, 1.0),
        ({"observation": np.array([1, 0, 1])}, 1.0),
        ({"info": None}, 1.0),
    ],
    ids=str,
)
def test_one_element_is_a_number_and_a_list_an_observation(wrong, expected):
    env = make_env("mine", lambda: Mine(**wrong))
    env.reset(seed=0)
    observation, reward, terminated, truncated, _ = env.step(0)
    assert (observation.shape, observation.dtype) == ((3,), np.float32)
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert reward == expected
    assert terminated == ("terminated" in wrong)
    assert truncated == ("truncated" in wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"observation": np.zeros(1, np.float32)}, ["observation", "shape (1,)", "(3,)"]),
        ({"observation": np.zeros((3, 1), np.float32)}, ["shape (3, 1)", "(3,)"]),
        ({"observation": np.float32(0)}, ["shape ()", "(3,)"]),
        ({"observation": {"a": 1}}, ["observation", "'a'", "(3,)"]),
        ({"observation": [[0.0], [1.0, 2.0]]}, ["observation", "(3,)"]),
        ({"reward": None}, ["reward None", "one number"]),
        ({"reward": [1.0, 2.0]}, ["reward [1.0, 2.0]", "one number"]),
        ({"reward": "high"}, ["reward 'high'", "one number"]),
        ({"truncated": None}, ["truncated None", "one number"]),
        ({"terminated": np.nan}, ["terminated nan", "true or false"]),
        ({"observation": np.zeros(3, np.complex64)}, ["complex64", "(3,)"]),
        ({"step": (np.zeros(3, np.float32), 1.0, False, {})}, ["step()", "a tuple of 4", "truncated, info)"]),
        ({"step": None}, ["step() returned None", "(observation, reward"]),
        ({"reset": np.zeros(3, np.float32)}, ["reset()", "array of shape (3,)", "(observation, info)"]),
        ({"reset": (np.zeros(2, np.float32), {})}, ["reset()", "shape (2,)", "(3,)"]),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(wrong, words):
    env = make_env("mine", lambda: Mine(**wrong))
    with pytest.raises(EnvironmentFault) as fault:  # noqa: PT012 (either of the two)
        env.reset(seed=0)
        env.step(0)
    assert "\n" not in str(fault.value)
    for word in ["mine: ", *words]:
        assert word in str(fault.value)


def test_an_array_that_is_written_again_is_copied():
    buffer = np.zeros(3, np.float32)

    class InPlace(Mine):
        def reset(self, *, seed=None, options=None):
            buffer[:] = 0
            return buffer, {}

        def step(self, action):
            buffer[:] += 1
            return buffer, 0.0, False, False, {}

    env = make_env("mine", InPlace)
    first, _ = env.reset()
    second = env.step(0)[0]
    assert (first.tolist(), second.tolist()) == ([0] * 3, [1] * 3)


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1", "MountainCarContinuous-v0", "FrozenLake-v1"])
def test_many_environments_do_what_gymnasiums_vector_does(name):
    """With the same seeds and actions, to the bit."""

    def make():
        env = gym.make(name)
        return env if isinstance(env.observation_space, spaces.Box) else gym.wrappers.FlattenObservation(env)

    ours = make_vector_env(name, 3)
    theirs = SyncVectorEnv([make] * 3, autoreset_mode=AutoresetMode.DISABLED)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_array_equal(ours.reset(seed=[5, 6, 7])[0], theirs.reset(seed=[5, 6, 7])[0])
    theirs.action_space.seed(0)
    for _ in range(200):
        actions = theirs.action_space.sample()
        (*mine, _), (*others, _) = ours.step(actions), theirs.step(actions)
        for a, b in zip(mine, others, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        if (done := mine[2] | mine[3]).any():
            masks = [{"reset_mask": done.copy()} for _ in range(2)]
            np.testing.assert_array_equal(ours.reset(options=masks[0])[0], theirs.reset(options=masks[1])[0])
    ours.close()


def test_environments_that_are_valid_alone_are_valid_together():
    """Infos that vary, bounds of observations that differ, no options that nobody gave, seeds of 31 bits."""
    made = []

    class Varies(Mine):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Box(-1 - len(made), 1, (3,))
            made.append(self)

        def step(self, action):
            *parts, _ = super().step(action)
            return *parts, {"path": np.zeros(self.t), "kind": self.t if self.t % 2 else "odd"}

    envs = make_vector_env("mine", 3, Varies)
    for seed in range(20):
        reset_all(envs, seed)
    for _ in range(12):
        done = envs.step(np.zeros(3, np.int64))[3]
        if done.any():
            envs.reset(options={"reset_mask": done})
    assert all(options is None for env in made for options in env.options)
    seeds = [seed for env in made for seed in env.seeds if seed is not None]
    assert (len(set(seeds)), max(seeds) < 2**31, min(seeds) >= 0) == (60, True, True)
    envs.close()
    assert [env.closed for env in made] == [1, 1, 1]


def test_copies_that_are_no_copies_are_refused():
    one = Mine()
    with pytest.raises(UsageError, match="env_fn of mine returned an environment that is in use; it must make a new"):
        make_vector_env("mine", 4, lambda: one)
    assert one.closed == 1
    sizes = iter([2, 3])

    class Grows(Mine):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Discrete(next(sizes))

    with pytest.raises(UsageError, match=r"different action spaces, Discrete\(2\) and Discrete\(3\)"):
        make_vector_env("mine", 2, Grows)


def test_an_environment_is_free_again_once_it_is_closed():
    one = Mine()
    env = make_env("mine", lambda: one)
    with pytest.raises(UsageError, match="in use"):
        make_env("mine", lambda: gym.wrappers.TimeLimit(one, 5))
    env.close()
    again = make_env("mine", lambda: one)
    again.close()
    assert id(one) not in IN_USE


def test_every_environment_is_closed_though_one_raises():
    made = []

    class Stuck(Mine):
        def __init__(self):
            super().__init__()
            made.append(self)

        def close(self):
            super().close()
            raise OSError("stuck")

    envs = make_vector_env("mine", 3, Stuck)
    with pytest.raises(OSError, match="stuck"):
        envs.close()
    assert [env.closed for env in made] == [1, 1, 1]


@pytest.mark.parametrize("missing", ["observation_space", "action_space"])
def test_a_space_that_is_missing_is_named(missing):
    class Forgot(Mine):
        def __init__(self):
            super().__init__()
            setattr(self, missing, None)

    with pytest.raises(UsageError, match=f"--env mine has no {missing}; set it"):
        make_env("mine", Forgot)


def test_what_cannot_be_used_is_closed_or_named():
    made = []

    class Text(Mine):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Text(3)
            made.append(self)

    with pytest.raises(UsageError, match="has the action space Text"):
        make_env("mine", Text)
    assert made[0].closed == 1
    with pytest.raises(UsageError, match=r"the env_fn of mine returned a dict, not a gymnasium\.Env"):
        make_env("mine", dict)


def test_seeds_reach_all_generators_of_an_environment():
    """Those of the spaces of every wrapper and of other attributes, too, unless the constructor has seeded them."""

    class Many(Mine):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-1, 1, (1,))
            self.goals, self.unseeded, self.seeded = (
                spaces.Discrete(1000),
                np.random.default_rng(),
                np.random.default_rng(5),
            )

        def draw(self):
            parts = [
                self.action_space.sample()[0],
                self.goals.sample(),
                self.unseeded.random(),
                self.np_random.random(),
            ]
            return [*map(float, parts)]

    envs = [make_env("mine", lambda: gym.wrappers.RescaleAction(Many(), -2, 2)) for _ in range(3)]
    for env, seed in zip(envs, (1, 1, 2), strict=True):
        env.seed_generators(seed)
    first, second, other = (env.unwrapped.draw() for env in envs)
    assert first == second
    assert all(a != b for a, b in zip(first, other, strict=True))
    assert envs[0].unwrapped.seeded.random() == np.random.default_rng(5).random()


def test_an_action_that_the_environment_keeps_is_its_own():
    kept = []

    class Keeps(Mine):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-1, 1, (2,))

        def step(self, action):
            kept.append(action)
            return super().step(action)

    envs = make_vector_env("mine", 2, Keeps)
    envs.reset(seed=0)
    actions = np.zeros((2, 2), np.float32)
    envs.step(actions)
    actions += 1
    assert [action.tolist() for action in kept] == [[0, 0], [0, 0]]
    assert all(action.base is None for action in kept)
