"""What a person should know about an environment before a long run, in a line each."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.wrappers import NormalizeObservation, NormalizeReward

from environments.border import Border
from environments.flattening import is_image
from environments.structure import leaves, left_out

MANY_INPUTS = 1_000


def advice(env: Any) -> list[str]:
    """What works less well than it could in an environment, or vector of them."""
    if isinstance(env, VectorEnv) and hasattr(env, "advice"):  # its environments are in other processes
        return list(env.advice)
    env = getattr(env, "envs", [env])[0]
    lines = []
    while isinstance(env, gym.Wrapper):
        if isinstance(env, Border):
            lines += space_advice(env.name, env.env.observation_space)
        for kind, flag, effect in (
            (NormalizeObservation, "obs_norm", "the policy is scored with statistics of its own, new ones"),
            (NormalizeReward, "reward_norm", "returns are not those of the environment"),
        ):
            if isinstance(env, kind):
                lines.append(f"{kind.__name__} around the environment: {effect}; remove it, {flag} does the same")
        env = env.env
    return lines


def space_advice(name: str, space: spaces.Space) -> list[str]:
    """What of an observation space is left out, or larger than the networks are made for."""
    lines = []
    if names := left_out(space):
        lines.append(f"{name}: {', '.join(names)} of its observations cannot be flattened, and are left out")
    arrays = [leaf for leaf in leaves(space) if isinstance(leaf, spaces.Box) and len(leaf.shape) > 1]
    inputs = sum(int(np.prod(array.shape)) for array in arrays if not is_image(array))
    if inputs >= MANY_INPUTS:
        lines.append(
            f"{name}: arrays are flattened to {inputs:,} inputs of a fully connected network; if they are images, make"
            " them a Box of type uint8 and three dimensions, (height, width, channels), to use convolutions"
        )
    return lines
