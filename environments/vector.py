"""Many environments in one process, stepped one after the other."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from environments.errors import UsageError


class SequentialVectorEnv(VectorEnv):
    """N environments whose observations are vectors of the same length.

    In place of Gymnasium's SyncVectorEnv, which also gathers the environments' `info` and fails where its shapes or
    types vary, passes `options={}` in a reset by mask, and refuses copies whose bounds differ.

    Args:
        env_fns: make the environments, each in a `Border`.
        name: of the environment, for messages.

    Raises:
        UsageError: the observation spaces have different shapes, or the action spaces differ.
    """

    def __init__(self, env_fns: Sequence[Callable[[], gym.Env]], name: str) -> None:
        self.envs: list[Any] = []
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        try:
            for env_fn in env_fns:
                self._add(env_fn(), name)
        except BaseException:
            with contextlib.suppress(Exception):  # the error that matters is the first one
                self.close_extras()
            raise
        self.num_envs, first = len(self.envs), self.envs[0]
        self.single_observation_space, self.single_action_space = first.observation_space, first.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        shape, dtype = self.single_observation_space.shape or (), self.single_observation_space.dtype
        self.observations = np.zeros((self.num_envs, *shape), dtype)

    def _add(self, env: Any, name: str) -> None:
        """Add an environment; raises a `UsageError` if its spaces do not fit those of the first one."""
        self.envs.append(env)
        first = self.envs[0]
        if env.observation_space.shape != first.observation_space.shape or env.layout != first.layout:
            differ = f"observation spaces of different shapes, {first.declared} and {env.declared}"
            raise UsageError(f"copies of {name} have {differ}; make them equal")
        if env.action_space != first.action_space:
            differ = f"different action spaces, {first.action_space} and {env.action_space}"
            raise UsageError(f"copies of {name} have {differ}; make them equal")

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, dtype=bool))
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
        for i in np.flatnonzero(mask).tolist():
            self.observations[i], _ = self.envs[i].reset(seed=None if seeds is None else seeds[i])
        return self.observations.copy(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            self.observations[i], rewards[i], terminated[i], truncated[i], _ = env.step(action)
        return self.observations.copy(), rewards, terminated, truncated, {}

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment, also if closing one raises; raises the first of these errors."""
        errors = []
        for env in self.envs:
            try:
                env.close()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
