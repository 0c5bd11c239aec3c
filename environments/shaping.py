"""The rewards that an agent learns from: potential-based reward shaping, and the signs of Atari's scores."""

from collections.abc import Callable
from typing import Any

import numpy as np

from environments.atari import is_atari
from environments.errors import EnvironmentFault, UsageError
from environments.modules import import_function

Potential = Callable[[np.ndarray], np.ndarray]
Shaping = Callable[[Any, np.ndarray, np.ndarray, Any], Any]


def mountain_car_potential(observations: np.ndarray) -> np.ndarray:
    """Potential of MountainCar: its mechanical energy, scaled so that it rises by about 50 in a successful episode.

    The car must gain energy to leave the valley, whichever direction it is moving in.

    Args:
        observations: position and velocity, (N, 2).
    """
    position, velocity = observations[:, 0].astype(np.float64), observations[:, 1].astype(np.float64)
    # The force of the slope is -0.0025 cos(3 x), so the potential energy of a unit mass is 0.0025 / 3 sin(3 x).
    return 30_000 * (velocity**2 / 2 + 0.0025 / 3 * np.sin(3 * position))


BUILT_IN_POTENTIALS: dict[str, Potential] = {
    "MountainCar-v0": mountain_car_potential,
    "MountainCarContinuous-v0": mountain_car_potential,
}


def load_shaping(name: str | None, env_id: str, gamma: float) -> Shaping | None:
    """A function from r, s, s' and whether s' is terminal to the rewards to learn from; None if these are r.

    Of Atari games, whose scores differ by orders of magnitude, they are the signs (Mnih et al. 2015). With a potential,
    `shaping_reward` is added.

    Args:
        name: of the potential: `built-in`, or your own `module:function`; none if empty.
        env_id: of the environment.
        gamma: the discount factor.

    Raises:
        UsageError: the environment has no built-in potential, or the function cannot be imported.
    """
    potential = load_potential(name, env_id) if name else None
    signs = is_atari(env_id)

    def shaping(rewards: Any, observations: np.ndarray, next_observations: np.ndarray, terminated: Any) -> Any:
        rewards = np.sign(rewards) if signs else rewards
        if potential is None:
            return rewards
        return rewards + shaping_reward(observations, next_observations, terminated, potential=potential, gamma=gamma)

    return shaping if potential or signs else None


def load_potential(name: str, env_id: str) -> Potential:
    """The potential that `--reward-shaping` names."""
    if name == "built-in":
        if env_id not in BUILT_IN_POTENTIALS:
            raise UsageError(
                f"--reward-shaping: {env_id} has no built-in potential (only {' and '.join(BUILT_IN_POTENTIALS)} do);"
                " give your own as module:function"
            )
        return BUILT_IN_POTENTIALS[env_id]
    if ":" not in name:
        raise UsageError(f"--reward-shaping {name} must be built-in or module:function")
    return import_function(name, "--reward-shaping")


def shaping_reward(
    observations: np.ndarray, next_observations: np.ndarray, terminated: Any, *, potential: Potential, gamma: float
) -> np.ndarray:
    """The shaping reward F = gamma * phi(s') - phi(s), which does not change the optimal policy.

    The potential of a terminal state is 0. Source: Ng, Harada and Russell 1999, "Policy invariance under reward
    transformations", section 3; for terminal states: Grzes 2017, "Reward shaping in episodic reinforcement learning".

    Args:
        observations, next_observations: s and s', (..., D), not normalized.
        terminated: 1 or 0, (...).
        potential: maps observations (N, D) to potentials (N,).
        gamma: the discount factor.

    Returns:
        The rewards to add, (...).
    """
    terminated = np.asarray(terminated)

    def potentials(states: np.ndarray) -> np.ndarray:
        values = np.asarray(potential(states.reshape(-1, states.shape[-1])))
        if values.size != terminated.size:
            shapes = f"{values.shape}, not ({terminated.size},)"
            raise EnvironmentFault(f"the potential of --reward-shaping returned an array of shape {shapes}")
        return values.reshape(terminated.shape)

    return gamma * potentials(next_observations) * (1.0 - terminated) - potentials(observations)
