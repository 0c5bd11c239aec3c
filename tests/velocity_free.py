"""Environments that do not show their velocities, as rl-baselines3-zoo has them: `--env tests.velocity_free:ID`."""

import gymnasium as gym
import numpy as np

import environments  # noqa: F401  (registers Pendulum-v0)

SHOWN = {
    "CartPoleNoVel-v1": ("CartPole-v1", [0, 2]),
    "PendulumNoVel-v0": ("Pendulum-v0", [0, 1]),
    "MountainCarContinuousNoVel-v0": ("MountainCarContinuous-v0", [0]),
}
"""The environment, and which entries of its observations are shown, by id."""


class Shown(gym.ObservationWrapper):
    """Shows some entries of the observations."""

    def __init__(self, name: str) -> None:
        super().__init__(gym.make(SHOWN[name][0]))
        self.entries = SHOWN[name][1]
        space = self.env.observation_space
        self.observation_space = gym.spaces.Box(space.low[self.entries], space.high[self.entries])

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[self.entries]


for name in SHOWN:
    gym.register(name, Shown, kwargs={"name": name})
