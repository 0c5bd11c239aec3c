"""What decides how an environment goes on, as plain data: taken out of it for a checkpoint, and put back.

An environment's future is in its attributes: its state, the steps of the episode so far, its random generator. They are
read through all wrappers and vector environments. Numbers, strings, arrays, generators, MuJoCo's data and containers of
these are taken; spaces, functions, models and renderers stay as the environment's constructor made them. Anything else
may hold what decides, and cannot be read: then the environment's state as a whole cannot.
"""

import types
from collections import deque
from enum import Enum
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, type)
STATIC = (*FUNCTIONS, spaces.Space, EnvSpec, Enum, mujoco.MjModel, MujocoRenderer)
INTEGRATION = mujoco.mjtState.mjSTATE_INTEGRATION
# What MuJoCo computes from the state in a step is that of the step's beginning, and stays until the next; rewards and
# observations are taken from there, so that to compute it anew would make them others.
# fmt: off
DERIVED = [
    "xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos",
    "geom_xmat", "site_xpos", "site_xmat", "subtree_com", "subtree_linvel", "subtree_angmom", "cinert", "crb",
    "cvel", "cdof", "cacc", "cfrc_int", "cfrc_ext", "qacc", "qfrc_actuator", "qfrc_constraint",
    "actuator_force", "sensordata",
]
# fmt: on
GENERATORS = {name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")}


class UnreadableError(Exception):
    """An environment holds something of which nobody can tell what it decides."""


def read(value: Any) -> Any:
    """An environment, or anything in one, as numbers, strings, tensors and containers of them.

    Raises:
        UnreadableError: there is something in it that cannot be read.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        return {"tensor": value.clone()}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        return {"array": torch.from_numpy(np.array(value))}
    if isinstance(value, np.random.Generator):
        return {"generator": read(value.bit_generator.state)}
    if isinstance(value, (gym.Env, VectorEnv)):
        return {"environment": {name: read(attribute) for name, attribute in vars(value).items()}}
    if isinstance(value, mujoco.MjData):
        numbers = np.empty(mujoco.mj_stateSize(value.model, INTEGRATION))
        mujoco.mj_getState(value.model, value, numbers, INTEGRATION)
        return {"mujoco": {"state": read(numbers)} | {name: read(getattr(value, name)) for name in DERIVED}}
    if type(value) is dict:
        return {"dict": [[read(key), read(item)] for key, item in value.items()]}
    if type(value) in (list, tuple, deque):
        return {type(value).__name__: [read(item) for item in value]}
    if isinstance(value, STATIC):
        return {"static": True}
    raise UnreadableError(f"{type(value).__module__}.{type(value).__qualname__}")


def write(current: Any, saved: Any) -> Any:
    """Bring `current`, an environment or anything in one, to the state that `read` returned.

    Returns:
        What is to stand in its place: environments are changed in place, the rest is made anew.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the state is of something else.
    """
    if not isinstance(saved, dict):
        return saved
    ((kind, content),) = saved.items()
    match kind:
        case "array":
            return content.numpy().copy()[()]
        case "generator":
            state = write(None, content)
            bit_generator = GENERATORS[state["bit_generator"]]()
            bit_generator.state = state
            return np.random.Generator(bit_generator)
        case "environment":
            for name, attribute in content.items():
                vars(current)[name] = write(vars(current).get(name), attribute)
            return current
        case "mujoco":
            mujoco.mj_setState(current.model, current, write(None, content["state"]), INTEGRATION)
            for name in DERIVED:
                getattr(current, name)[...] = write(None, content[name])
            return current
        case "tensor":
            return content
        case "dict":
            old = current if isinstance(current, dict) else {}
            return {write(None, key): write(old.get(write(None, key)), item) for key, item in content}
        case "list" | "tuple" | "deque":
            there = list(current) if isinstance(current, (list, tuple, deque)) else []
            there += [None] * (len(content) - len(there))
            items = [write(old, item) for old, item in zip(there, content, strict=False)]
            if kind == "deque":
                return deque(items, getattr(current, "maxlen", None))
            return items if kind == "list" else tuple(items)
        case "static":
            return current
    raise ValueError(f"a state of an unknown kind, {kind}")
