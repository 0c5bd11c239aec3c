"""What a checkpoint keeps of an environment: it goes on to the bit, or is found to be unreadable."""

import functools
import os
import random
from collections import deque
from enum import Enum, Flag, IntEnum

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, RescaleAction, TransformObservation

from environments import make_env
from environments.states import UnreadableError, get_state, set_state
from training.generators import generator_states, restore_generators

LEVEL = [0]
COUNT = 0


class Phase(Enum):
    UP = 1
    DOWN = 2


class Light(IntEnum):
    RED = 0
    GREEN = 1


class Kind(Flag):
    A = 1
    B = 2


class Odd:
    """Whatever it is asked for raises an error."""

    def __getattribute__(self, name):
        raise RuntimeError("odd")


class Mine(gym.Env):
    """Returns two numbers that `change` computes, which also changes the state."""

    action_space = spaces.Discrete(2)

    def __init__(self):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.begin()

    def begin(self):
        pass

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2), {}

    def step(self, action):
        self.t += 1
        return np.full(2, 1.0) * self.change(), 0.0, False, False, {}


class Enums(Mine):
    def begin(self):
        self.phase, self.light = Phase.UP, Light.RED

    def change(self):
        if self.t == 4:
            self.phase, self.light = Phase.DOWN, Light.GREEN
        return self.phase.value + 10 * self.light


class Methods(Mine):
    def reset(self, *, seed=None, options=None):
        self.act, self.x = self.walk, 0
        return super().reset(seed=seed)

    def walk(self):
        self.x += 1

    def run(self):
        self.x += 5

    def change(self):
        if self.t == 4:
            self.act = self.run
        self.act()
        return self.x


class Views(Mine):
    def begin(self):
        self.board = np.zeros((2, 3), order="F")
        self.row, self.same = self.board[1, ::2], self.board

    def change(self):
        self.board += 1
        self.same[1, 2] += 1
        return self.row


class Tensors(Mine):
    def begin(self):
        self.board = torch.zeros(2, 3)
        self.row = self.board[1, 1:]

    def change(self):
        self.board += 1
        return self.row.numpy()


class OneGenerator(Mine):
    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed)
        self.rng, self.draw = self.np_random, self.np_random.normal
        return result

    def change(self):
        return self.rng.random() + self.np_random.random() + self.draw()


class ManyGenerators(Mine):
    def begin(self):
        self.old, self.python = np.random.RandomState(3), random.Random(4)
        self.torch, self.parent = torch.Generator().manual_seed(5), np.random.default_rng(6)

    def change(self):
        (child,) = self.parent.spawn(1)
        return child.random() + self.old.normal() + self.python.random() + torch.rand(1, generator=self.torch).item()


class Space(Mine):
    def begin(self):
        self.goals = spaces.Dict(a=spaces.Box(-1, 1, (2,)))
        self.goals.seed(1)

    def change(self):
        return self.observation_space.sample() + self.goals.sample()["a"]


class ClassVariable(Mine):
    level, seen = 0, deque(maxlen=3)

    def change(self):
        type(self).level += 1
        self.seen.append(self.level)
        return sum(self.seen)


class ModuleVariable(Mine):
    def change(self):
        global COUNT
        COUNT += 1
        LEVEL[0] += 2
        return COUNT + LEVEL[0]


class Closure(Mine):
    def begin(self):
        level = [0]

        def up():
            level[0] += 1
            return level[0]

        self.up = up

    def change(self):
        return self.up()


class Cycle(Mine):
    def begin(self):
        self.me, self.chain = self, [1]
        self.chain.append(self.chain)

    def change(self):
        self.me.chain[1][0] += 1
        return self.chain[0]


GENERATOR = np.random.default_rng(5)
HOLDER = type("HOLDER", (), {"level": 0})


def helper():
    return GENERATOR.random()


def counted(function):
    count = [0]

    @functools.wraps(function)
    def wrapper(self):
        count[0] += 1
        return function(self) + count[0]

    return wrapper


class Helpers(Mine):
    """A module's variables through another function, a comprehension, a decorator, a default and another class."""

    @counted
    def change(self, seen=[0]):  # noqa: B006
        seen[0] += 1
        HOLDER.level += 1
        return helper() + sum([GENERATOR.random() for _ in range(2)]) + seen[0] + HOLDER.level


class Recursive(Mine):
    def begin(self):
        def fibonacci(n):
            return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

        def incomplete():
            return later

        self.fibonacci, self.incomplete, self.power = fibonacci, incomplete, np.tanh
        if False:
            later = 1
        self.queue = deque()
        self.queue.append(self.queue)

    def change(self):
        return self.fibonacci(self.t) + self.power(0.5) + len(self.queue[0])


class Flags(Mine):
    def begin(self):
        self.flags = Kind.A

    def change(self):
        self.flags = Kind.A | Kind.B if self.t > 3 else Kind(0)
        return self.flags.value


class Globals(Mine):
    def begin(self):
        self.draw, self.old = random.random, np.random.rand

    def change(self):
        return self.draw() + random.random() + self.old() + np.random.rand()  # noqa: NPY002


class ReadOnly(Mine):
    def begin(self):
        self.board = np.zeros(2)
        self.view = self.board[:]
        self.view.flags.writeable = False

    def change(self):
        self.board += 1
        return self.view + 10 * self.view.flags.writeable


class Keeps(Mine):
    """The action that it was given."""

    def step(self, action):
        self.last = action
        return super().step(action)

    def change(self):
        return float(self.last)


class Old(Mine):
    def begin(self):
        self.old = np.random.RandomState(np.random.PCG64(4))

    def change(self):
        return self.old.normal()


def wrapped():
    env = FrameStackObservation(RescaleAction(gym.make("Pendulum-v1"), np.float32(-1), np.float32(1)), 3)
    return TransformObservation(env, lambda o: o * 2, env.observation_space)


KINDS = [
    *(Enums, Flags, Methods, Views, ReadOnly, Tensors, OneGenerator, ManyGenerators, Old, Globals, Space),
    *(ClassVariable, ModuleVariable, Helpers, Closure, Recursive, Cycle, Keeps, wrapped),
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_environment_goes_on_where_it_was(kind, tmp_path):
    global COUNT
    old, new = make_env("mine", kind), make_env("mine", kind)
    action = old.action_space.sample() * 0
    old.reset(seed=3)
    for _ in range(5):
        old.step(action)
    torch.save(get_state({"env": old, "generators": generator_states()}), tmp_path / "state")
    expected = [old.step(action)[0] for _ in range(4)]
    Helpers.change.__wrapped__.__defaults__[0][0] = HOLDER.level = 0
    ClassVariable.level, LEVEL[0], COUNT = 0, 0, 0  # as in a new process
    ClassVariable.seen.clear()
    restored = set_state({"env": new}, torch.load(tmp_path / "state", weights_only=True))
    restore_generators(restored["generators"])
    np.testing.assert_array_equal([new.step(action)[0] for _ in range(4)], expected)
    again = get_state(new)
    set_state(new, again)  # what was restored can be saved again


class Lazy(Mine):
    """A test sets and deletes a variable of its class."""


class Holds(Mine):
    def __init__(self, held):
        self.held = held
        super().__init__()


NESTED = functools.reduce(lambda inner, _: [inner], range(300), 0)
ODD = np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2).copy("K")


@pytest.mark.parametrize(
    "held",
    [
        object(),
        iter([1]),
        {1},
        np.array([None]),
        torch.zeros(2).numpy(),
        torch.nn.Parameter(torch.ones(1)),
        NESTED,
        ODD,
    ],
    ids=lambda held: type(held).__name__,
)
def test_what_cannot_be_saved_is_unreadable(held):
    with pytest.raises(UnreadableError):
        get_state(make_env("mine", lambda: Holds(held)))


def test_what_raises_an_error_is_unreadable():
    with pytest.raises(UnreadableError, match="it raised RuntimeError: odd"):
        get_state({"odd": Odd()})


def test_a_function_or_class_that_has_changed_is_not_restored():
    def make(value):
        return make_env("mine", lambda: Holds(value))

    with pytest.raises(UnreadableError):
        set_state(make(0), get_state(make(lambda: 1)))
    with pytest.raises(UnreadableError):
        set_state(make_env("mine", Cycle), get_state(make_env("mine", Enums)))


def test_a_checkpoint_cannot_name_a_function_that_the_environment_does_not_have():
    """Such a checkpoint has been changed by somebody; the environment would call that function."""
    held, other = (make_env("mine", lambda function=function: Holds(function)) for function in (os.getcwd, os.getpid))
    set_state(held, get_state(held))
    with pytest.raises(UnreadableError, match=r"posix\.getpid"):
        set_state(held, get_state(other))
    held, other = (make_env("mine", lambda function=function: Holds(function)) for function in (0, os.popen))
    with pytest.raises(UnreadableError, match=r"os\.popen"):
        set_state(held, get_state(other))


def test_a_variable_that_is_gone_is_not_restored():
    old, new = make_env("mine", Lazy), make_env("mine", Lazy)
    Lazy.table = [1]
    state = get_state(old)
    del Lazy.table
    with pytest.raises(UnreadableError, match=r"table of class .*Lazy, which is not there now"):
        set_state(new, state)


def test_two_objects_where_the_constructor_made_one_are_noticed():
    """Restored in place, the second would overwrite the first."""

    class Two(Mine):
        def begin(self):
            envs = [Enums(), Enums()]
            self.current, self.envs = envs[0], envs

        def change(self):
            self.current = self.envs[1]
            return 1

    old, new = make_env("mine", Two), make_env("mine", Two)
    old.reset(seed=1)
    old.step(0)
    with pytest.raises(UnreadableError, match=r"two objects of .*Enums, where the constructor made one"):
        set_state(new, get_state(old))


def test_a_mujoco_model_that_the_environment_changes_is_kept():
    """As in domain randomization: the masses belong to the state."""

    class Heavy(gym.Wrapper):
        def reset(self, **kwargs):
            result = self.env.reset(**kwargs)
            self.unwrapped.model.body_mass[:] *= 1 + self.unwrapped.np_random.random()
            self.unwrapped.model.opt.timestep *= 1 + self.unwrapped.np_random.random()
            return result

        def step(self, action):
            forces = self.unwrapped.data.qfrc_bias.sum()  # computed by the step before
            observation, *rest = self.env.step(action)
            return observation + forces, *rest

    old, new = (make_env("mine", lambda: Heavy(gym.make("Hopper-v5"))) for _ in range(2))
    old.reset(seed=1)
    state, action = get_state(old), np.full(3, 0.3, np.float32)
    expected = [old.step(action)[0] for _ in range(5)]
    set_state(new, state)
    np.testing.assert_array_equal([new.step(action)[0] for _ in range(5)], expected)


def test_large_arrays_of_the_same_content_are_saved_once(tmp_path):
    prices = np.random.default_rng(0).normal(size=100_000)
    state = get_state([make_env("mine", lambda: Holds(prices.copy())) for _ in range(8)])
    torch.save(state, tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 1_000_000


def test_tensors_in_memory_that_compiled_code_has_divided_are_saved(tmp_path):
    """Of several types, and of a size that is no multiple of theirs."""
    memory = torch.UntypedStorage(68)
    memory.fill_(0)
    whole = torch.empty(0, dtype=torch.int64).set_(memory, 1, (2,))
    torch.save(get_state([whole, torch.empty(0).set_(memory, 0, (2,)), whole[:1]]), tmp_path / "state")
    restored = set_state(None, torch.load(tmp_path / "state", weights_only=True))
    assert [tensor.tolist() for tensor in restored] == [[0, 0], [0.0, 0.0], [0]]
