"""EnvPool's environments in the form of the other vector environments."""

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from environments.errors import UsageError, first_line


class EnvPoolVectorEnv(VectorEnv):
    """Environments of EnvPool, written in C++ (Weng et al. 2022, arXiv 2206.10558), which must be installed.

    By itself, EnvPool uses the step after the end of an episode for a reset and ignores the action. A caller that
    resets by `options={"reset_mask": done}`, as with the other vector environments here, never gets such a step.

    Args:
        env_id: an id that EnvPool has; observations must be vectors.
        num_envs: number of environments.

    Raises:
        UsageError: EnvPool is not installed, or has no such environment.
    """

    def __init__(self, env_id: str, num_envs: int) -> None:
        # EnvPool rounds float64 limits to its float32 spaces; Gymnasium warns of that.
        warnings.filterwarnings("ignore", message=".*precision lowered by casting to float32")
        try:
            self.envpool = importlib.import_module("envpool")
        except ImportError as error:
            raise UsageError(
                f"--vector-backend envpool cannot be imported ({first_line(error)}); pip install envpool, or use sync"
            ) from error
        if env_id not in self.envpool.list_all_envs():
            raise UsageError(f"--vector-backend envpool has no {env_id}; use --vector-backend sync")
        spec = self.envpool.make_spec(env_id)
        self.single_observation_space, self.single_action_space = spec.observation_space, spec.action_space
        if len(self.single_observation_space.shape or ()) != 1:
            raise UsageError(
                f"--vector-backend envpool has {env_id} with observations of {self.single_observation_space}, which are"
                " not vectors; use --vector-backend sync"
            )
        self.env_id, self.num_envs = env_id, num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:  # EnvPool takes seeds only when it makes environments, and only 31 bits
            seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed
            settings = {"num_envs": self.num_envs, "seed": [(s or 0) % (2**31 - 1) for s in seeds]}
            self.pool = self.envpool.make(self.env_id, env_type="gymnasium", **settings)
            self.observations = self.pool.reset()[0]
        else:
            ids = np.flatnonzero(options["reset_mask"]) if options else np.arange(self.num_envs)
            first_observations, info = self.pool.reset(ids.astype(np.int32))
            self.observations = self.observations.copy()
            self.observations[info["env_id"]] = first_observations
        return self.observations, {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        self.observations, rewards, terminated, truncated, info = self.pool.step(actions)
        return self.observations, rewards, terminated, truncated, info
