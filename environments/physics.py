"""The state of MuJoCo's models and data: also of what it computes from the state, and of a model that was changed."""

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np


def data_state(data: Any) -> list[np.ndarray]:
    """The state of `mujoco.MjData`: what is integrated, and all arrays.

    Most arrays are computed from the state at the beginning of a step, and kept until the next. Rewards and
    observations are read from them, and would differ if they were computed anew from the current state.
    """
    mujoco = sys.modules["mujoco"]
    integration = mujoco.mjtState.mjSTATE_INTEGRATION
    numbers = np.empty(mujoco.mj_stateSize(data.model, integration))
    mujoco.mj_getState(data.model, data, numbers, integration)
    return [numbers, joined(fixed_arrays(data))]


def set_data_state(data: Any, numbers: np.ndarray, arrays: np.ndarray) -> None:
    """Restore what `data_state` returned."""
    mujoco = sys.modules["mujoco"]
    mujoco.mj_setState(data.model, data, numbers, mujoco.mjtState.mjSTATE_INTEGRATION)
    write(fixed_arrays(data), arrays)


def fixed_arrays(data: Any) -> list[np.ndarray]:
    """The arrays of `mujoco.MjData` whose sizes depend on the model alone, not on the contacts at the moment."""
    fresh = members(sys.modules["mujoco"].MjData(data.model), np.ndarray)
    return [getattr(data, name) for name, array in fresh.items() if array.size]


def model_state(model: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """The arrays of a `mujoco.MjModel` and its options, and the options that are numbers: an environment may change
    them, for example at random."""
    return joined(model_arrays(model)), members(model.opt, (int, float))


def set_model_state(model: Any, arrays: np.ndarray, numbers: dict[str, Any]) -> None:
    """Restore what `model_state` returned."""
    write(model_arrays(model), arrays)
    for name, number in numbers.items():
        if getattr(model.opt, name) != number:
            setattr(model.opt, name, number)


def model_arrays(model: Any) -> list[np.ndarray]:
    """The arrays of a model and its options."""
    return [array for owner in (model, model.opt) for array in members(owner, np.ndarray).values() if array.size]


def members(owner: Any, kind: Any) -> dict[str, Any]:
    """The attributes of this type, by name."""
    attributes = {name: getattr(owner, name) for name in dir(owner) if not name.startswith("_")}
    return {name: value for name, value in attributes.items() if isinstance(value, kind)}


def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
    """The bytes of arrays, one after the other."""
    return np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays])


def write(arrays: Iterable[np.ndarray], content: np.ndarray) -> None:
    """Write into arrays what `joined` returned, where it differs; raises a `ValueError` if their sizes do."""
    arrays = list(arrays)
    if sum(array.nbytes for array in arrays) != len(content):
        raise ValueError("the state of another MuJoCo model")
    start = 0
    for array in arrays:
        part = content[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        start += array.nbytes
        if part.tobytes() != array.tobytes():
            array[...] = part
