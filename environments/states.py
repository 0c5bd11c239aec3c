"""The state of an environment as plain data: read for a checkpoint, and restored.

The future of an environment depends on its attributes: its state, the steps of the episode so far, its random
generator. They are read through all wrappers and vector environments. Numbers, strings, arrays, generators, MuJoCo's
data and containers of these are saved; spaces, functions, models and renderers stay as the constructor made them.
Anything else may belong to the state but cannot be saved: then the state of the environment cannot be read at all.
"""

import sys
import types
from collections import deque
from enum import Enum
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

# Not part of the state: these stay as the constructor made them.
FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.ModuleType, type)
STATIC = (*FUNCTIONS, np.dtype, spaces.Space, EnvSpec, Enum)
STATIC_BY_NAME = {"mujoco.MjModel", "gymnasium.MujocoRenderer"}  # MuJoCo is imported only by environments that use it
# MuJoCo computes these from the state at the beginning of a step, and keeps them until the next. Rewards and
# observations are read from them, and would differ if they were recomputed from the current state.
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
    """An environment holds an object that may belong to its state, but cannot be saved; names its type."""


def get_state(value: Any) -> Any:
    """The state of an environment, or of anything in one, as numbers, strings, tensors and containers of them.

    What is none of these, or a container of them, becomes {kind: content}, see `set_state`.

    Raises:
        UnreadableError: it contains an object that cannot be saved.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        return {"tensor": value.clone()}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        try:
            return {"array" if isinstance(value, np.ndarray) else "number": torch.from_numpy(np.array(value))}
        except (TypeError, ValueError) as error:  # long doubles, or another byte order
            raise UnreadableError(f"a NumPy array of {value.dtype}") from error
    if isinstance(value, np.random.Generator):
        return {"generator": get_state(value.bit_generator.state)}
    if isinstance(value, (gym.Env, VectorEnv)):
        if any(vars(cls).get("__slots__") for cls in type(value).__mro__):
            raise UnreadableError(f"{type(value).__name__}, whose attributes are __slots__")
        return {"environment": {name: get_state(attribute) for name, attribute in vars(value).items()}}
    mujoco = sys.modules.get("mujoco")
    if mujoco and isinstance(value, mujoco.MjData):
        integration = mujoco.mjtState.mjSTATE_INTEGRATION
        numbers = np.empty(mujoco.mj_stateSize(value.model, integration))
        mujoco.mj_getState(value.model, value, numbers, integration)
        return {"mujoco": {"state": get_state(numbers)} | {name: get_state(getattr(value, name)) for name in DERIVED}}
    if type(value) is dict:
        return {"dict": [[get_state(key), get_state(item)] for key, item in value.items()]}
    if type(value) in (list, tuple, deque):
        return {type(value).__name__: [get_state(item) for item in value]}
    name = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
    if isinstance(value, STATIC) or name in STATIC_BY_NAME:
        return {"static": True}
    raise UnreadableError(f"{type(value).__module__}.{type(value).__qualname__}")


def set_state(current: Any, saved: Any) -> Any:
    """Restore `current`, an environment or anything in one, to a state that `get_state` returned.

    Returns:
        The restored object. Environments and MuJoCo's data are changed in place; everything else is created anew.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the state belongs to another kind of environment.
    """
    if not isinstance(saved, dict):
        return saved
    ((kind, content),) = saved.items()
    match kind:
        case "array":
            return content.numpy().copy()
        case "number":
            return content.numpy()[()]
        case "generator":
            state = set_state(None, content)
            bit_generator = GENERATORS[state["bit_generator"]]()
            bit_generator.state = state
            return np.random.Generator(bit_generator)
        case "environment":
            for name, attribute in content.items():
                vars(current)[name] = set_state(vars(current).get(name), attribute)
            return current
        case "mujoco":
            mujoco = sys.modules["mujoco"]
            integration = mujoco.mjtState.mjSTATE_INTEGRATION
            mujoco.mj_setState(current.model, current, set_state(None, content["state"]), integration)
            for name in DERIVED:
                getattr(current, name)[...] = set_state(None, content[name])
            return current
        case "tensor":
            return content
        case "dict":
            old = current if isinstance(current, dict) else {}
            return {set_state(None, key): set_state(old.get(set_state(None, key)), item) for key, item in content}
        case "list" | "tuple" | "deque":
            olds = list(current) if isinstance(current, (list, tuple, deque)) else []
            olds += [None] * (len(content) - len(olds))
            items = [set_state(old, item) for old, item in zip(olds, content, strict=False)]
            if kind == "deque":
                return deque(items, getattr(current, "maxlen", None))
            return items if kind == "list" else tuple(items)
        case "static":
            return current
    raise ValueError(f"unknown kind of state: {kind}")
