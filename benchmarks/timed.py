"""HalfCheetah-v4 as the published code of Stream AC (Elsayed et al. 2024) steps it, for a comparison with that.

The observation tells how much of the episode is over, and its time limit counts as a termination.
"""

from typing import Any

import gymnasium as gym
from gymnasium.wrappers import TimeAwareObservation


class LimitIsTermination(gym.Wrapper):
    """Calls terminated what is only truncated."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info


def make(**settings: Any) -> gym.Env:
    env = gym.make("HalfCheetah-v4", **settings)
    return LimitIsTermination(TimeAwareObservation(env, normalize_time=True))


gym.register("TimedHalfCheetah-v4", entry_point=make)
