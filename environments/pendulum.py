"""Pendulum-v0, which Gymnasium no longer has: as in gym 0.18, alone and vectorized."""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.pendulum import PendulumEnv, angle_normalize
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

PENDULUM_V0 = "Pendulum-v0"


class PendulumV0Env(PendulumEnv):
    """Pendulum-v0 of gym 0.18. Unlike in v1, the angle is updated with the angular speed before it is clipped."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        torque = min(max(float(action[0]), -self.max_torque), self.max_torque)
        self.last_u = torque  # for the renderer
        self.state, reward = pendulum_v0_dynamics(self.state, torque)
        if self.render_mode == "human":
            self.render()
        return self._get_obs(), float(reward), False, False, {}


class PendulumV0VectorEnv(VectorEnv):
    """`num_envs` pendulums in NumPy arrays; with the same seeds, bitwise equal to as many `PendulumV0Env`.

    Args:
        num_envs: number of pendulums.
        max_episode_steps: steps after which an episode is truncated.
        autoreset_mode: NEXT_STEP, Gymnasium's usual one, or DISABLED, with resets by `options={"reset_mask": ...}`.
    """

    def __init__(
        self,
        num_envs: int = 1,
        max_episode_steps: int = 200,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if self.autoreset_mode is AutoresetMode.SAME_STEP:
            raise ValueError("Pendulum-v0 has no autoreset_mode SAME_STEP; use NEXT_STEP or DISABLED")
        self.metadata = {"autoreset_mode": self.autoreset_mode}
        self.num_envs = num_envs
        self.max_episode_steps = max_episode_steps
        single = PendulumV0Env()
        self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.generators = [np.random.default_rng() for _ in range(num_envs)]
        self.state = np.zeros((2, num_envs))  # angle (rad), angular speed (rad/s)
        self.elapsed = np.zeros(num_envs, dtype=np.int64)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
            self.generators = [np.random.default_rng(s) for s in seeds]
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        for i in np.flatnonzero(mask):
            self.state[:, i] = self.generators[i].uniform([-np.pi, -1.0], [np.pi, 1.0])
        self.elapsed[mask] = 0
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        over = self.elapsed >= self.max_episode_steps if self.autoreset_mode is AutoresetMode.NEXT_STEP else None
        self.state, rewards = pendulum_v0_dynamics(self.state, np.minimum(np.maximum(actions[:, 0], -2.0), 2.0))
        self.elapsed += 1
        if over is not None and over.any():
            self.reset(options={"reset_mask": over})
            rewards[over] = 0.0
        return self._observe(), rewards, np.zeros(self.num_envs, dtype=bool), self.elapsed >= self.max_episode_steps, {}

    def _observe(self) -> np.ndarray:
        observations = np.empty((self.num_envs, 3), dtype=np.float32)
        angle, observations[:, 2] = self.state
        observations[:, 0], observations[:, 1] = np.cos(angle), np.sin(angle)
        return observations


def pendulum_v0_dynamics(state: np.ndarray, torque: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
    """One step of 0.05 s of one or many pendulums (1 m, 1 kg, g = 10 m/s^2), as in gym 0.18's `pendulum.py`.

    Args:
        state: angle from upright (rad) and angular speed (rad/s), (2,) or (2, N).
        torque: within [-2, 2] N m, () or (N,).

    Returns:
        The next state, and the reward: minus the cost of the state before the step and of the torque.
    """
    angle, speed = state
    torque = np.asarray(torque, dtype=np.float64)
    reward = -(angle_normalize(angle) ** 2 + 0.1 * speed**2 + 0.001 * torque**2)
    speed = speed + (15.0 * np.sin(angle) + 3.0 * torque) * 0.05
    return np.array([angle + speed * 0.05, np.minimum(np.maximum(speed, -8.0), 8.0)]), reward


gym.register(
    PENDULUM_V0,
    entry_point=f"{__name__}:PendulumV0Env",
    vector_entry_point=f"{__name__}:PendulumV0VectorEnv",
    max_episode_steps=200,
)
