"""Masks of invalid actions: where they come from, and how they travel as the last entries of an observation."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from environments.errors import EnvironmentFault, UsageError

MASK = "action_mask"
"""Gymnasium's name for what says which discrete actions are valid: an entry of `info` or of a Dict of observations."""


def choices(space: Any) -> list[int]:
    """The number of values of each entry of a flat action space, if these are discrete; else nothing."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec.ravel()]
    return [2] * int(np.prod(space.shape)) if isinstance(space, spaces.MultiBinary) else []


def mask_size(observations: spaces.Space | None, actions: spaces.Space) -> int:
    """Entries of the mask of invalid actions in a Dict of observations: one per value of each action; 0 without mask.

    Raises:
        UsageError: the mask has another size.
    """
    size = sum(choices(actions))
    if not size or not isinstance(observations, spaces.Dict) or MASK not in observations.spaces:
        return 0
    if spaces.flatdim(observations[MASK]) != size:
        raise UsageError(f"{MASK} is {observations[MASK]}, which must have an entry per value of {actions}: {size}")
    return size


class MaskInObservation(gym.Wrapper):
    """Moves the mask of invalid actions to the observation, which becomes a Dict; see `has_mask`.

    The mask is the entry `action_mask` of `info`, as Taxi has it. Where there is none, it is what the environment's
    method `action_masks` returns, or its attribute `action_mask`.

    Args:
        env: with discrete actions.
        actions: its action space, flat.

    Raises:
        EnvironmentFault: the mask has another shape, or there is none, but in the last observation of an episode.
    """

    def __init__(self, env: gym.Env, actions: spaces.Space) -> None:
        super().__init__(env)
        self.nvec = choices(actions)
        mask = spaces.MultiBinary(sum(self.nvec))
        self.observation_space = spaces.Dict({"observation": env.observation_space, MASK: mask})

    def reset(self, **kwargs: Any) -> Any:
        result = self.env.reset(**kwargs)
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], dict):
            return result  # `Border` says what is wrong
        return self.joined(*result), result[1]

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            return result
        observation, reward, terminated, truncated, info = result
        joined = self.joined(observation, info, terminated, done=terminated or truncated)
        return joined, reward, terminated, truncated, info

    def joined(
        self, observation: Any, info: dict[str, Any], terminated: bool = False, done: bool = False
    ) -> dict[str, Any]:
        """The observation with its mask; all actions are valid in a last observation that has none."""
        mask: Any = info.get(MASK)
        if mask is None:
            mask = attribute(self.env, f"{MASK}s", attribute(self.env, MASK))
            mask = mask() if callable(mask) and not terminated else mask
        if not isinstance(mask, (np.ndarray, list, tuple)):
            if not done:
                where = f"info[{MASK!r}], {MASK}s() or self.{MASK}"
                hint = f"set self.{MASK} = False if the environment has none"
                raise EnvironmentFault(f"the mask of invalid actions must be an array, in {where}; {hint}")
            mask = np.ones(sum(self.nvec))
        mask = np.hstack(mask)  # of one array for all actions, or one for each
        if mask.shape != (sum(self.nvec),):
            shape = f"({sum(self.nvec)},), an entry per value of the actions"
            raise EnvironmentFault(f"the {MASK} has the shape {mask.shape}, which must be {shape}")
        return {"observation": observation, MASK: mask}


def has_mask(env: gym.Env, actions: spaces.Space) -> bool:
    """Whether an environment with discrete actions has an attribute `action_mask` or `action_masks`."""
    masks = (attribute(env, name) for name in (MASK, f"{MASK}s"))
    kinds = (np.ndarray, list, tuple)
    return bool(choices(actions)) and any(mask is True or callable(mask) or isinstance(mask, kinds) for mask in masks)


def attribute(env: gym.Env, name: str, default: Any = None) -> Any:
    """An attribute of an environment or of a wrapper around it."""
    try:
        return env.get_wrapper_attr(name)
    except Exception:  # there is none; or it is a property, which may need a reset
        return True if hasattr(type(env.unwrapped), name) else default
