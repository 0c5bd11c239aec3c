"""The border to an environment: what it returns is checked, and brought to one form."""

import contextlib
import copy
import math
import weakref
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from environments.errors import EnvironmentFault, UsageError
from environments.flattening import Flattening
from environments.masks import MASK, MaskInObservation, choices, has_mask, mask_size
from environments.structure import flat_actions, numeric_part, structured
from networks import ObservationLayout

IN_USE: weakref.WeakValueDictionary[int, gym.Env] = weakref.WeakValueDictionary()
"""The environments that were made and not closed yet, by their `id`."""


class Border(gym.Wrapper):
    """Checks what `reset` and `step` return, and flattens observations and actions to vectors.

    A reward or flag of one element is taken as a number. Observations have the shape that the space declares, and are
    copies, since an environment may write its next one into the same array. Whether their values are finite is checked
    by the caller, where that is cheapest. Seeds also reach generators of the environment that its `reset` forgets.
    A mask of invalid actions comes last in the observation.

    Args:
        env: the environment.
        name: of the environment, for messages.

    Raises:
        UsageError: the environment is in use already, or its action space is not supported.
        EnvironmentFault: `reset` or `step` returned something else than Gymnasium's API and the spaces promise.
    """

    def __init__(self, env: gym.Env, name: str) -> None:
        actions, inner = flat_actions(env.action_space, name), border_within(env)
        self.registers = inner is None
        if self.registers and not mask_size(numeric_part(env.observation_space), actions) and has_mask(env, actions):
            env = MaskInObservation(env, actions)
        super().__init__(env)
        self.name, self.action_space, self.frame_stack = name, actions, 1
        space: Any = numeric_part(env.observation_space)
        self.declared = space
        self.mask_size = mask_size(space, actions)
        if self.mask_size:
            self.first_choices = np.cumsum([0, *choices(actions)[:-1]])
        self.is_vector = isinstance(space, spaces.Box) and len(space.shape) == 1
        self.is_structured = actions is not env.action_space
        self.flattening = Flattening(space, self.mask_size)
        if not self.is_vector:
            self.observation_space = self.flattening.space
        if inner is not None and inner.observation_space == self.observation_space:  # flat already
            self.declared, self.flattening = inner.declared, inner.flattening
        self.vector_shape, self.dtype = self.observation_space.shape, self.observation_space.dtype
        own_spaces(env.unwrapped)
        if self.registers:
            if IN_USE.get(id(env.unwrapped)) is env.unwrapped:
                raise UsageError(f"env_fn of {name} returned an environment that is in use; it must make a new one")
            IN_USE[id(env.unwrapped)] = env.unwrapped

    @property
    def layout(self) -> ObservationLayout:
        """What the entries of an observation are."""
        return self.flattening.layout()

    def close(self) -> None:
        if self.registers:
            IN_USE.pop(id(self.env.unwrapped), None)
        self.env.close()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, Any]:
        if seed is not None:
            self.seed_generators(seed)
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            raise self.fault("reset() returned", result, "(observation, info)")
        maskable = self.registers and not self.mask_size and choices(self.action_space)
        if maskable and (MASK in result[1] or (seed is not None and has_mask(self.env, self.action_space))):
            raise EnvironmentFault(
                f"{self.name} has an {MASK}, which is used only if it has an attribute {MASK} before the first reset():"
                f" set self.{MASK} = True in its constructor, or False to ignore the mask"
            )
        return self.observation(result[0], "reset()"), result[1]

    def step(self, action: Any) -> tuple[np.ndarray, Any, Any, Any, Any]:
        if isinstance(action, np.ndarray):  # the environment may keep it
            action = structured(self.env.action_space, action) if self.is_structured else action.copy()
        result = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            raise self.fault("step() returned", result, "(observation, reward, terminated, truncated, info)")
        observation, reward, terminated, truncated, info = result
        reward = float(reward) if isinstance(reward, float) else self.number(reward, "reward")
        terminated = terminated if type(terminated) is bool else self.flag(terminated, "terminated")
        truncated = truncated if type(truncated) is bool else self.flag(truncated, "truncated")
        vector = self.observation(observation, "step()", last=terminated or truncated)
        return vector, reward, terminated, truncated, info

    def seed_generators(self, seed: int) -> None:
        """Seed the generators of the environment and of its spaces, in case its `reset` does not.

        A generator of NumPy in another attribute is seeded if its constructor was not given a seed.
        """
        with contextlib.suppress(AttributeError):  # a property of its own
            self.env.unwrapped.np_random = np.random.default_rng(seed)
        env: Any = self.env
        while env is not None:
            for value in (env.observation_space, env.action_space, *vars(env).values()):
                if isinstance(value, spaces.Space):
                    value.seed(seed)
                elif isinstance(value, np.random.Generator):
                    entropy = getattr(value.bit_generator.seed_seq, "entropy", 0)
                    if isinstance(entropy, int) and entropy.bit_length() > 64:  # taken from the operating system
                        value.bit_generator.state = type(value.bit_generator)(seed).state
            env = env.env if isinstance(env, gym.Wrapper) else None

    def observation(self, observation: Any, source: str, last: bool = False) -> np.ndarray:
        """An observation as a vector (D,) of the declared type; `last`: of an episode."""
        try:
            values = observation if self.is_vector else self.flattening(observation)
            vector = np.array(values, dtype=self.dtype)
            if isinstance(values, np.ndarray) and values.dtype.kind == "c":
                raise ValueError("complex numbers")
        except Exception as error:  # a space can raise anything
            raise self.fault(f"{source} returned the observation", observation, f"one of {self.declared}") from error
        if vector.shape != self.vector_shape:
            raise self.fault(f"{source} returned the observation", observation, f"one of {self.declared}")
        if self.mask_size:
            mask = vector[-self.mask_size :]
            if ((mask != 0) & (mask != 1)).any():
                raise self.fault(
                    f"{source} returned the {MASK}", observation[MASK], "1 for valid actions, 0 for others"
                )
            if not np.maximum.reduceat(mask, self.first_choices).all():
                if not last:
                    raise self.fault(f"{source} returned the {MASK}", observation[MASK], "1 for at least one action")
                mask[:] = 1  # no action follows; without a valid one, probabilities would not be finite
        return vector

    def number(self, value: Any, what: str) -> float:
        """A number from one, or from an array or sequence of one element."""
        try:
            array = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.empty(0)
        if array.size != 1 or value is None:  # NumPy takes None for NaN
            raise self.fault(f"step() returned the {what}", value, "one number")
        return float(array.reshape(()))

    def flag(self, value: Any, what: str) -> bool:
        """A truth value from one, or from a number."""
        number = self.number(value, what)
        if math.isnan(number):
            raise self.fault(f"step() returned the {what}", value, "true or false")
        return bool(number)

    def fault(self, source: str, came: Any, declared: str) -> EnvironmentFault:
        """The error: what came, and what should have come."""
        return EnvironmentFault(f"{self.name}: {source} {describe(came)}, which should be {declared}")


def own_spaces(env: gym.Env) -> None:
    """Give an environment copies of the spaces of its class: their generators would be shared by all environments."""
    for name in ("observation_space", "action_space"):
        space = next((vars(cls)[name] for cls in type(env).__mro__ if name in vars(cls)), None)
        if isinstance(space, spaces.Space) and name not in vars(env):
            setattr(env, name, copy.deepcopy(space))


def border_within(env: gym.Env) -> Border | None:
    """The outermost `Border` among an environment and its wrappers."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Border):
            return env
        env = env.env
    return None


def describe(value: Any) -> str:
    """A value in a few words: type and shape of an array, types of the entries of a tuple, or the value."""
    if isinstance(value, (np.ndarray, np.generic)):
        return f"an array of shape {value.shape} and type {value.dtype}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(item).__name__ for item in value)})"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
