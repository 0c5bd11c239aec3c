"""Atari 2600 games by ale-py, with the preprocessing of Machado et al. 2018 (arXiv 1709.06009) and Mnih et al. 2015."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation

from environments.errors import UsageError, first_line

NOOPS, FRAME_SKIP, SIDE, FRAMES = 30, 4, 84, 4
"""Most steps without action at the start of an episode; frames a step; pixels of a side; frames in an observation."""


def is_atari(env_id: str) -> bool:
    """Whether this is the id of an Atari game."""
    return env_id.rpartition(":")[2].startswith("ALE/")


def make_atari_env(env_id: str, kwargs: Mapping[str, Any]) -> gym.Env:
    """An Atari game that shows its last four frames, (4, 84, 84) in gray: of every fourth one, the maximum of two.

    An episode begins with up to 30 steps without action, and ends with the game. Actions are repeated with the
    probability that the id stands for: 0.25 for -v5.
    """
    env = gym.make(env_id, disable_env_checker=True, **{"frameskip": 1, **kwargs})
    env = AtariPreprocessing(env, noop_max=NOOPS, frame_skip=FRAME_SKIP, screen_size=SIDE)
    return FrameStackObservation(env, FRAMES, padding_type="zero")


class AtariVectorEnv(VectorEnv):
    """As many games as `make_atari_env` makes, stepped by ale-py in C++.

    By itself, ale-py uses the step after the end of an episode for a reset. A caller that resets by
    `options={"reset_mask": done}`, as with the other vector environments here, never gets such a step.

    Args:
        env_id: of the game.
        num_envs: number of games.

    Raises:
        UsageError: ale-py cannot make them.
    """

    def __init__(self, env_id: str, num_envs: int) -> None:
        settings: dict[str, Any] = {"noop_max": NOOPS, "img_height": SIDE, "img_width": SIDE, "stack_num": FRAMES}
        settings |= {"frameskip": FRAME_SKIP, "reward_clipping": False, "use_fire_reset": False, "num_threads": 1}
        try:
            self.games: Any = gym.make_vec(env_id, num_envs, "vector_entry_point", **settings)
        except Exception as error:
            raise UsageError(f"--env {env_id} cannot be made: {first_line(error)}") from error
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": AutoresetMode.DISABLED}
        self.declared, self.single_action_space = self.games.single_observation_space, self.games.single_action_space
        self.single_observation_space = spaces.flatten_space(self.declared)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        seeds = seed if seed is None or isinstance(seed, int) else np.array(seed)
        observations, _ = self.games.reset(seed=seeds, options=options)
        return self._flat(observations), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        observations, *outcome, _ = self.games.step(actions)
        return self._flat(observations), *outcome, {}

    def close_extras(self, **kwargs: Any) -> None:
        self.games.close()

    def _flat(self, observations: np.ndarray) -> np.ndarray:
        return observations.reshape(self.num_envs, -1).copy()  # ale-py may write the next ones into the same array
