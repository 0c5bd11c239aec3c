"""Making environments by id, one or many that are stepped together."""

import contextlib
import difflib
import functools
import importlib.metadata
import importlib.util
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import FrameStackObservation, TransformObservation

from environments.actions import ActionMap
from environments.atari import AtariVectorEnv, is_atari, make_atari_env
from environments.border import Border
from environments.envpool import EnvPoolVectorEnv
from environments.errors import UsageError, first_line
from environments.flattening import stack
from environments.modules import import_user_module, name_clash
from environments.observations import ObservationMap
from environments.pendulum import PENDULUM_V0
from environments.processes import ProcessVectorEnv
from environments.structure import flat_actions, numeric_part
from environments.vector import SequentialVectorEnv

# Old versions are used on purpose: results of Hopper-v4 and Hopper-v5 are not comparable.
warnings.filterwarnings("ignore", message="(?s).*is out of date", category=DeprecationWarning)

EnvFn = Callable[..., gym.Env]
# With the versions -v2 and -v3, which need mujoco-py and cannot run.
MUJOCO_IDS = {i for i, spec in gym.registry.items() if "gymnasium.envs.mujoco" in str(spec.entry_point)}
PACKAGES = {
    "ALE/": "ale-py",
    "MinAtar/": "minatar",
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
    "highway-": "highway-env",
    "Fetch": "gymnasium-robotics",
    "PointMaze": "gymnasium-robotics",
    "AntMaze": "gymnasium-robotics",
    "AdroitHand": "gymnasium-robotics",
    "FrankaKitchen": "gymnasium-robotics",
}
"""Packages that register environments, by the beginning of their ids."""


def make_env(
    env_id: str,
    env_fn: EnvFn | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    frame_stack: int = 1,
    **more: Any,
) -> gym.Env:
    """Make one environment whose observations and actions are flat vectors.

    Args:
        env_id: a registered id, or `module:Id-v0` to first import `module`, which registers it.
        env_fn: makes the environment instead, if it is not registered; `env_id` is then only its name.
        env_kwargs, more: arguments for the environment's constructor, or for `env_fn`.
        frame_stack: an observation has those of so many steps, the last one last; in the first steps of an episode
            the first one repeatedly.

    Raises:
        UsageError: there is no such environment, it cannot be made, or its spaces are not supported.
    """
    what = f"the env_fn of {env_id}" if env_fn else f"--env {env_id}"
    if env_fn is None:
        check_env_id(env_id)
    try:
        kwargs = {**(env_kwargs or {}), **more}
        if env_fn:
            env = env_fn(**kwargs)
        elif is_atari(env_id) and "obs_type" not in kwargs:  # which asks for observations of its own
            env = make_atari_env(env_id, kwargs)
        else:
            env = gym.make(env_id, disable_env_checker=True, **kwargs)
    except UsageError:  # of an env_fn that calls this function
        raise
    except (Exception, SystemExit) as error:  # a constructor can raise anything
        raise UsageError(f"{what} {'failed' if env_fn else 'cannot be made'}: {first_line(error)}") from error
    if not isinstance(env, gym.Env):
        raise UsageError(f"{what} {'returned' if env_fn else 'is'} a {type(env).__name__}, not a gymnasium.Env")
    try:
        check_spaces(env, env_id)
    except UsageError:
        with contextlib.suppress(Exception):  # the error that matters is the first one
            env.close()
        raise
    border = Border(env, env_id)
    if frame_stack == 1:
        return border
    if border.mask_size:
        raise UsageError(
            f"--frame-stack {frame_stack} is not possible with {env_id}, which has an action_mask; remove one"
        )
    frames, image_size = FrameStackObservation(border, frame_stack), border.layout.image_size
    space = spaces.flatten_space(frames.observation_space)
    stacked = Border(TransformObservation(frames, lambda steps: stack(steps, image_size), space), env_id)
    stacked.declared, stacked.frame_stack = border.declared, frame_stack
    return stacked


def following_camera(env_id: str) -> dict[str, str]:
    """Arguments for Gymnasium's MuJoCo environments: draw what moves by the camera that follows it, if there is one."""
    return {"camera_name": "track"} if env_id in MUJOCO_IDS else {}


def check_spaces(env: gym.Env, env_id: str) -> None:
    """Raise a `UsageError` if a space of an environment is missing or not supported."""
    for name in ("observation_space", "action_space"):
        if not isinstance(getattr(env, name, None), spaces.Space):
            raise UsageError(f"--env {env_id} has no {name}; set it to a space of gymnasium.spaces")
    space = numeric_part(env.observation_space)
    if space is None or not spaces.flatdim(space):
        raise UsageError(
            f"--env {env_id} has the observation space {env.observation_space}, which cannot be flattened;"
            " use Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
        )
    ActionMap(flat_actions(env.action_space, env_id), env_id)  # raises if the action space is not supported


def make_vector_env(
    env_id: str,
    num_envs: int,
    env_fn: EnvFn | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    backend: str = "sync",
    frame_stack: int = 1,
) -> VectorEnv:
    """Make `num_envs` copies of an environment that are stepped together; see `make_env` for arguments and errors.

    Where an episode has ended the caller resets, by `reset(options={"reset_mask": done})`.

    Args:
        backend: sync, one after the other in this process; async, in a process each; or envpool, in C++ on all cores.
    """
    if backend == "envpool":
        if env_fn:
            raise UsageError("--vector-backend envpool has only environments of its own, and no env_fn; use sync")
        if env_kwargs:
            raise UsageError("--env-kwargs is not possible with --vector-backend envpool; use sync")
        if frame_stack > 1:
            raise UsageError("--frame-stack is not possible with --vector-backend envpool; use sync")
        make_env(env_id).close()  # for its error messages; and evaluation uses the environment without EnvPool
        return EnvPoolVectorEnv(env_id, num_envs)
    env_fns = [functools.partial(make_env, env_id, env_fn, env_kwargs, frame_stack)] * num_envs
    if backend == "async":
        return ProcessVectorEnv(env_fns, env_id)
    as_registered = env_fn is None and not env_kwargs and frame_stack == 1
    if as_registered and env_id == PENDULUM_V0:  # in NumPy, faster than SyncVectorEnv
        return gym.make_vec(env_id, num_envs, "vector_entry_point", autoreset_mode=AutoresetMode.DISABLED)
    if as_registered and is_atari(env_id):
        make_env(env_id).close()  # for its error messages
        return AtariVectorEnv(env_id, num_envs)
    return SequentialVectorEnv(env_fns, env_id)


def make_maps(env: Any) -> tuple[ActionMap, ObservationMap]:
    """The maps to the actions and from the observations of an environment, or vector of them."""
    env = getattr(env, "envs", [env])[0]
    kind = "single_" * isinstance(env, VectorEnv)
    actions = getattr(env, f"{kind}action_space")
    # A `Border` has flattened the observations; the policy takes them as they were before, too.
    observations = getattr(env, "declared", getattr(env, f"{kind}observation_space"))
    return maps_of(observations, actions, getattr(env, "frame_stack", 1))


def maps_of(
    observations: spaces.Space, actions: spaces.Space, frame_stack: int = 1
) -> tuple[ActionMap, ObservationMap]:
    """The maps to actions and from observations of these spaces; see `make_maps`."""
    return ActionMap(actions, observations=observations), ObservationMap(observations, actions, frame_stack)


def reset_all(envs: VectorEnv, seed: int, first: int = 0) -> np.ndarray:
    """Start an episode in every environment, with seeds that are hashed: with seed + i, runs 0 and 1 would share some.

    Args:
        first: index of the first of these environments among those of all ranks.

    Returns:
        The first observations, (N, D).
    """
    seeds = np.random.SeedSequence(seed).generate_state(first + envs.num_envs)[first:] >> 1  # simulators take 31 bits
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        getattr(envs, name).seed(seed)
    return envs.reset(seed=seeds.tolist())[0]


def check_env_id(env_id: str) -> None:
    """Raise a `UsageError` that suggests the right id, if this one is not registered or cannot run."""
    module, _, name = env_id.rpartition(":")
    if module:
        import_user_module(module, f"--env {env_id}")
    base, _, version = name.rpartition("-v")
    if f"{base}-v4" in MUJOCO_IDS and version in ("0", "1", "2", "3"):
        raise UsageError(f"--env {name} needs mujoco-py, which is no longer maintained; use --env {base}-v4")
    if name not in gym.registry and not find_plug_in(name):
        if known := [package for start, package in PACKAGES.items() if name.startswith(start)]:
            raise UsageError(f"--env {env_id} needs the package {known[0]}: pip install {known[0]}")
        runnable = [i for i in gym.registry if not re.search("-v[23]$", i) or i[:-1] + "4" not in MUJOCO_IDS]
        nearest = difflib.get_close_matches(name, runnable, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(nearest)}?" if nearest else "see gymnasium.pprint_registry() for all ids"
        hint += " (module:Id-v0 imports a module of your own first; --env-fn module:function makes it by a function)"
        raise UsageError(f"--env {env_id} is not a registered environment; {name_clash(module)[2:] or hint}")


def find_plug_in(env_id: str) -> bool:
    """Let installed packages register their environments, until one has this environment.

    They are packages with an entry point for it, and those that depend on Gymnasium and register something.
    """
    for entry_point in importlib.metadata.entry_points(group="gymnasium.envs"):
        if env_id.startswith(f"{entry_point.name}/"):
            with contextlib.suppress(Exception, SystemExit):  # a package can raise anything
                entry_point.load()()
    modules = [package.replace("-", "_") for start, package in PACKAGES.items() if env_id.startswith(start)]
    for module, distributions in sorted(importlib.metadata.packages_distributions().items()):
        requirements = [line for name in distributions for line in importlib.metadata.requires(name) or ()]
        if any(re.match(r"gymnasium\b(?!-)", line) and "extra ==" not in line for line in requirements):
            spec = importlib.util.find_spec(module)
            if spec and spec.origin and "register" in Path(spec.origin).read_text(errors="ignore"):
                modules.append(module)
    for module in modules:
        if env_id in gym.registry:
            break
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(module)
    return env_id in gym.registry
