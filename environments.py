"""Environments: finding them by id, stepping many at once, Pendulum-v0, action ranges and reward shaping.

The scripts meet every environment in one form. Observations are flat float vectors. The actor's output, which knows
nothing of ranges and offsets, becomes the environment's action in `ActionMap`. Vector environments never reset by
themselves (`AutoresetMode.DISABLED`): what `step` returns is always the true successor, also at an episode's end.
"""

import difflib
import importlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.pendulum import PendulumEnv, angle_normalize
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn

from utils import UsageError

# A version is chosen on purpose: results of Hopper-v4 and Hopper-v5 do not compare.
warnings.filterwarnings("ignore", message="(?s).*is out of date", category=DeprecationWarning)

EnvFn = Callable[[], gym.Env]
Potential = Callable[[np.ndarray], np.ndarray]


def make_env(env_id: str, env_fn: EnvFn | None = None, **kwargs: Any) -> gym.Env:
    """Make one environment whose observations are flat vectors.

    Args:
        env_id: a registered id, or `module:Id-v0` to import `module`, which registers it, first.
        env_fn: makes the environment instead, for one that is not registered; `env_id` is then only its name.
        kwargs: for the environment's constructor, e.g. `render_mode`.

    Raises:
        UsageError: no such environment, one that cannot be made, or spaces that the actor and critic cannot take.
    """
    if env_fn is None:
        check_env_id(env_id)
    try:
        env = env_fn() if env_fn else gym.make(env_id, disable_env_checker=True, **kwargs)
    except Exception as error:  # whatever a constructor raises, the person can only choose or install something else
        raise UsageError(f"--env {env_id} cannot be made: {first_line(error)}") from error
    if not isinstance(env.observation_space, spaces.Box) or len(env.observation_space.shape) != 1:
        if not env.observation_space.is_np_flattenable:
            raise UsageError(
                f"--env {env_id} has observations of {env.observation_space}, which do not flatten to a vector;"
                " use Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
            )
        env = gym.wrappers.FlattenObservation(env)
    ActionMap(env.action_space, env_id)  # raises if the action space is not supported
    return env


def make_vector_env(env_id: str, num_envs: int, env_fn: EnvFn | None = None, backend: str = "sync") -> VectorEnv:
    """Make `num_envs` copies of an environment that step together; see `make_env` for arguments and errors.

    Where an episode has ended the caller resets, by `reset(options={"reset_mask": done})`.

    Args:
        backend: sync, one after the other in this process, or envpool, in C++ on all cores.
    """
    if backend == "envpool":
        if env_fn:
            raise UsageError("--vector-backend envpool steps only environments of its own; use sync with an env_fn")
        make_env(env_id).close()  # for the errors that name what is wrong; and the policy is evaluated without EnvPool
        return EnvPoolVectorEnv(env_id, num_envs)
    if env_fn is None and env_id == PENDULUM_V0:
        return gym.make_vec(env_id, num_envs, "vector_entry_point", autoreset_mode=AutoresetMode.DISABLED)
    return SyncVectorEnv([lambda: make_env(env_id, env_fn)] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


class EnvPoolVectorEnv(VectorEnv):
    """EnvPool's environments, written in C++ (Weng et al. 2022, arXiv 2206.10558); it must be installed.

    Left alone, EnvPool spends the step after an episode's end on a reset, whatever the action: no transition. A caller
    that resets by `options={"reset_mask": done}`, as with the other vector environments here, never meets that step.

    Args:
        env_id: an id that EnvPool has; observations must be vectors.
        num_envs: number of environments.

    Raises:
        UsageError: EnvPool is not installed, or has no such environment.
    """

    def __init__(self, env_id: str, num_envs: int) -> None:
        # EnvPool's float32 spaces are cut from float64 limits, which Gymnasium warns of.
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
                " no vectors; use --vector-backend sync"
            )
        self.env_id, self.num_envs = env_id, num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.DISABLED}
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        if seed is not None:  # EnvPool takes seeds only where it makes environments, and those of 31 bits
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


def reset_all(envs: VectorEnv, seed: int, first: int = 0) -> np.ndarray:
    """Start an episode in every environment, with independent seeds: runs 0 and 1 share none, as seed + i would.

    Args:
        first: how many environments of the same run come before these, on other ranks.

    Returns:
        The first observations, (N, D).
    """
    seeds = np.random.SeedSequence(seed).generate_state(first + envs.num_envs)[first:].tolist()
    return envs.reset(seed=seeds)[0]


def check_env_id(env_id: str) -> None:
    """Raise a `UsageError` that says which id would be right, if this one is not registered or cannot run."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise UsageError(f"--env {env_id}: module {module!r} cannot be imported: {first_line(error)}") from error
    base, _, version = name.rpartition("-v")
    if f"{base}-v4" in MUJOCO_IDS and version in ("0", "1", "2", "3"):
        raise UsageError(f"--env {name} needs mujoco-py, which is no longer maintained; use --env {base}-v4")
    if name not in gym.registry:
        runnable = [i for i in gym.registry if not re.search("-v[23]$", i) or i[:-1] + "4" not in MUJOCO_IDS]
        nearest = difflib.get_close_matches(name, runnable, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "see gymnasium.pprint_registry() for all ids"
        raise UsageError(f"--env {env_id} is not a registered environment; {hint}")


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class ActionMap(nn.Module):
    """Turns what an actor puts out into what an environment takes.

    A Gaussian actor acts in [-1, 1] wherever the range is finite on both sides: scaled to the range, then clipped to
    it. Elsewhere its output is used as it is, clipped to the side that is bounded. A categorical actor puts out
    choices counted from 0: one for Discrete, one an entry for MultiDiscrete and MultiBinary.

    Attributes:
        continuous: whether the actor is to be Gaussian.
        size: numbers in an action.
        bounded: for the Gaussian actor, whether each number's range is finite; empty if not continuous.
        nvec: for the categorical actor, the number of choices of each; empty if continuous.
    """

    offset: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, space: spaces.Space, env_id: str = "") -> None:
        super().__init__()
        self.shape = space.shape or ()
        self.continuous = isinstance(space, spaces.Box)
        self.bounded: list[bool] = []
        self.nvec: list[int] = []
        offset: np.ndarray = np.zeros(1, dtype=np.int64)
        if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
            low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
            bounded = np.isfinite(low) & np.isfinite(high)
            scale = np.where(bounded, (np.where(bounded, high, 0) - np.where(bounded, low, 0)) / 2, 1)
            offset = np.where(bounded, (np.where(bounded, high, 0) + np.where(bounded, low, 0)) / 2, 0)
            for name, array in (("low", low), ("high", high), ("scale", scale)):
                self.register_buffer(name, torch.from_numpy(array.astype(space.dtype)))
            self.bounded = bounded.tolist()
        elif isinstance(space, spaces.Discrete):
            self.nvec, offset = [int(space.n)], np.array([space.start])
        elif isinstance(space, spaces.MultiDiscrete):
            self.nvec, offset = space.nvec.ravel().tolist(), space.start.ravel()
        elif isinstance(space, spaces.MultiBinary):
            self.nvec = [2] * int(np.prod(space.shape))
        else:
            raise UsageError(
                f"--env {env_id} takes actions of {space}, which no actor here can give;"
                " use Box (of floats), Discrete, MultiDiscrete or MultiBinary"
            )
        self.size = len(self.nvec or self.bounded)
        self.register_buffer("offset", torch.from_numpy(offset.astype(space.dtype)))

    def forward(self, actions: Tensor) -> Tensor:
        """Map the actor's actions (..., size) to the environments', (..., *action shape), in their type."""
        actions = actions.to(self.offset.dtype)
        if self.continuous:
            actions = (self.offset + self.scale * actions).clamp(self.low, self.high)
        else:
            actions = actions + self.offset
        return actions.reshape((*actions.shape[:-1], *self.shape))


# --- Pendulum-v0 -----------------------------------------------------------------------------------------------------

PENDULUM_V0 = "Pendulum-v0"


class PendulumV0Env(PendulumEnv):
    """Pendulum-v0 of gym 0.18: the angle moves by the speed before that is clipped, in v1 by the speed after it."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        torque = min(max(float(action[0]), -self.max_torque), self.max_torque)
        self.last_u = torque  # what the renderer draws
        self.state, reward = pendulum_v0_dynamics(self.state, torque)
        if self.render_mode == "human":
            self.render()
        return self._get_obs(), float(reward), False, False, {}


class PendulumV0VectorEnv(VectorEnv):
    """`num_envs` pendulums in NumPy arrays; with the same seeds, to the bit what as many `PendulumV0Env` do.

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
            raise ValueError("Pendulum-v0 resets on the next step or, with autoreset_mode DISABLED, when told to")
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
        The next state and the reward, minus the cost of the state that was left and of the torque.
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

MUJOCO_IDS = {i for i, spec in gym.registry.items() if "gymnasium.envs.mujoco" in str(spec.entry_point)}


# --- Reward shaping --------------------------------------------------------------------------------------------------


def mountain_car_potential(observations: np.ndarray) -> np.ndarray:
    """Potential of MountainCar: its mechanical energy, in units in which an episode's whole gain is worth about 50.

    Energy is what the car must gain to get out of the valley, whichever way it is moving.

    Args:
        observations: position and velocity, (N, 2).
    """
    position, velocity = observations[:, 0].astype(np.float64), observations[:, 1].astype(np.float64)
    # The slope's force is -0.0025 cos(3 x), so that 0.0025 / 3 sin(3 x) is the potential energy of a unit mass.
    return 30_000 * (velocity**2 / 2 + 0.0025 / 3 * np.sin(3 * position))


BUILT_IN_POTENTIALS: dict[str, Potential] = {
    "MountainCar-v0": mountain_car_potential,
    "MountainCarContinuous-v0": mountain_car_potential,
}


def load_potential(name: str | None, env_id: str) -> Potential | None:
    """The potential function that `--reward-shaping` names: `built-in`, a person's own `module:function`, or none.

    Raises:
        UsageError: there is none built in for the environment, or the function cannot be imported.
    """
    if name is None:
        return None
    if name == "built-in":
        if env_id not in BUILT_IN_POTENTIALS:
            raise UsageError(
                f"--reward-shaping: {env_id} has no built-in potential (only {' and '.join(BUILT_IN_POTENTIALS)} do);"
                " give your own as module:function"
            )
        return BUILT_IN_POTENTIALS[env_id]
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--reward-shaping {name}: {error}; give built-in or module:function") from error


def shaping_reward(
    potential: Potential, observations: np.ndarray, next_observations: np.ndarray, terminated: np.ndarray, gamma: float
) -> np.ndarray:
    """What shaping adds to the reward, F = gamma * phi(s') - phi(s); it leaves the optimal policy as it is.

    A terminal state has no future to promise, so that its potential is 0. Source: Ng, Harada and Russell 1999,
    "Policy invariance under reward transformations", section 3; Grzes 2017 for terminal states.

    Args:
        potential: maps observations (N, D) to (N,).
        observations, next_observations: s and s', (..., D), not normalised.
        terminated: (...).

    Returns:
        (...).
    """
    now, then = (
        potential(o.reshape(-1, o.shape[-1])).reshape(terminated.shape) for o in (observations, next_observations)
    )
    return gamma * then * (1.0 - terminated) - now
