"""The state of an environment as plain data: read for a checkpoint, and restored.

The future of an environment depends on its attributes: its state, the steps of the episode so far, its random
generators. They are read through all wrappers, vector environments and spaces, with the attributes of their classes,
the variables that their functions enclose, and the module variables that their methods use. Numbers, strings, arrays,
enums, generators, methods, MuJoCo's models and data, and containers of these are saved; renderers stay as the
constructor made them. Two names for one object, or for parts of one array, stay two names for it. Anything else may
belong to the state but cannot be saved: then the state of the environment cannot be read at all.
"""

import random
import sys
import types
from collections import deque
from enum import Enum
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from environments.outside import FUNCTION, find, outside, owners, place

# Not part of the state: these stay as the constructor made them.
STATIC_BY_NAME = {"gymnasium.MujocoRenderer"}  # MuJoCo is imported only by environments that use it
IN_PLACE = (gym.Env, VectorEnv, spaces.Space)
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
PLAIN = (bool, int, float, str, type(None))
METHODS = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)
SEED_SEQUENCE = ("entropy", "spawn_key", "pool_size", "n_children_spawned")
LARGE = 4096
"""Bytes from which on arrays of the same content are saved once."""


class UnreadableError(Exception):
    """An environment holds an object that may belong to its state, but cannot be saved or restored; names its type."""


def get_state(value: Any) -> Any:
    """The state of an environment, or of anything in one, as numbers, strings, tensors and containers of them.

    What is none of these becomes [kind, number, content], see `set_state`.

    Raises:
        UnreadableError: it contains an object that cannot be saved.
    """
    return Reader().read(value)


def set_state(current: Any, saved: Any) -> Any:
    """Restore `current`, an environment or anything in one, to a state that `get_state` returned.

    Returns:
        The restored object. Environments, spaces and MuJoCo's objects are changed in place; everything else is created
        anew.

    Raises:
        UnreadableError: the environment holds another object where the state cannot create one.
        KeyError, TypeError, ValueError, AttributeError: the state belongs to another kind of environment.
    """
    return Writer().write(current, saved)


class Reader:
    """Reads one state; remembers the objects in it, so that each is saved once."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}  # of the objects so far, by their `id`
        self.kept: list[Any] = []  # an `id` is unique only as long as its object lives
        self.outside: set[str] = set()  # classes and modules that were read
        self.storages: dict[tuple[int, int], torch.UntypedStorage] = {}
        self.contents: dict[int, list[torch.Tensor]] = {}  # large arrays, by their length in bytes

    def read(self, value: Any) -> Any:
        if type(value) in PLAIN:
            return value
        if isinstance(value, np.generic):
            return ["number", -1, self._bytes(np.asarray(value))]
        if id(value) in self.numbers:
            return ["same", -1, self.numbers[id(value)]]
        number = self.numbers[id(value)] = len(self.kept)
        self.kept.append(value)
        kind, content = self._content(value)
        return [kind, number, content]

    def _content(self, value: Any) -> tuple[str, Any]:
        """The kind of an object, and its content."""
        name = f"{type(value).__module__.partition('.')[0]}.{type(value).__name__}"
        mujoco = sys.modules.get("mujoco")
        if isinstance(value, torch.Tensor):
            return "tensor", self._tensor(value)
        if type(value) in (np.ndarray, np.memmap):
            return self._array(value)
        if type(value) in (list, tuple):
            return type(value).__name__, [self.read(item) for item in value]
        if type(value) is frozenset and list(frozenset(list(value))) == list(value):  # in the same order
            return "frozenset", [self.read(item) for item in value]
        if type(value) is deque:
            return "deque", [value.maxlen, [self.read(item) for item in value]]
        if type(value) is dict:
            return "dict", [[self.read(key), self.read(item)] for key, item in value.items()]
        if isinstance(value, np.random.Generator):
            return "generator", self.read(value.bit_generator)
        if isinstance(value, np.random.BitGenerator) and type(value).__name__ in GENERATORS:
            sequence = value.seed_seq
            if not isinstance(sequence, np.random.SeedSequence):
                raise UnreadableError(f"a generator seeded by {type(sequence).__name__}")
            parts = {name: getattr(sequence, name) for name in SEED_SEQUENCE}
            return "bit_generator", [type(value).__name__, self.read(value.state), self.read(parts)]
        if isinstance(value, np.random.RandomState):
            return "random_state", self.read(value.get_state(legacy=False))
        if type(value) is random.Random:
            return "random", self.read(value.getstate())
        if isinstance(value, torch.Generator):
            return "torch_generator", [str(value.device), value.get_state()]
        if isinstance(value, IN_PLACE):
            return "attributes", self._attributes(value)
        if isinstance(value, Enum):
            return "member", [place(type(value)), value.name]
        if isinstance(value, np.dtype):
            return "dtype", value.str
        if isinstance(value, METHODS) and not isinstance(value.__self__, (types.ModuleType, type(None))):
            if getattr(value.__self__, value.__name__, None) != value:
                raise UnreadableError(f"the method {value.__qualname__}")
            return "method", [self.read(value.__self__), value.__name__]
        if isinstance(value, (type, FUNCTION, types.BuiltinFunctionType)) and find(place(value)) is value:
            return "named", place(value)
        if isinstance(value, FUNCTION):
            return "function", [place(value), [self.read(cell.cell_contents) for cell in value.__closure__ or ()]]
        if mujoco and isinstance(value, mujoco.MjData):
            integration = mujoco.mjtState.mjSTATE_INTEGRATION
            numbers = np.empty(mujoco.mj_stateSize(value.model, integration))
            mujoco.mj_getState(value.model, value, numbers, integration)
            return "mujoco_data", [self._bytes(array) for array in (numbers, *(getattr(value, n) for n in DERIVED))]
        if mujoco and isinstance(value, mujoco.MjModel):
            arrays = [array.reshape(-1).view(np.uint8) for array in model_arrays(value)]
            return "mujoco_model", self._bytes(np.concatenate(arrays))
        if isinstance(value, (types.ModuleType, EnvSpec)) or name in STATIC_BY_NAME:
            return "static", None
        raise UnreadableError(f"{type(value).__module__}.{type(value).__qualname__}")

    def _array(self, array: np.ndarray) -> tuple[str, Any]:
        """An array, or a view of one: the array that owns the data, and where in it the view lies."""
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        if base is not array and array.size and type(base) is np.ndarray:
            offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
            return "view", [self.read(base), array.dtype.str, list(array.shape), list(array.strides), offset]
        if base.base is not None and array.flags.writeable:
            raise UnreadableError(f"an array that shares the memory of a {type(base.base).__qualname__}")
        return "array", self._bytes(array)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor; copies of tensors that share memory share theirs, which `torch.save` keeps."""
        storage = tensor.untyped_storage()
        copied = self.storages.setdefault((storage.data_ptr(), storage.nbytes()), storage.clone())
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(copied, tensor.storage_offset(), tensor.size(), tensor.stride())

    def _bytes(self, array: np.ndarray) -> list[Any]:
        """Type, shape, order and bytes of an array; one tensor of bytes for all large arrays of the same content."""
        if array.dtype.hasobject or array.dtype.names:
            raise UnreadableError(f"a NumPy array of {array.dtype}")
        order: Literal["C", "F"] = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
        content = np.asarray(array, order=order).reshape(-1, order=order).view(np.uint8)
        alike = self.contents.setdefault(len(content), []) if len(content) >= LARGE else []
        tensor = next((tensor for tensor in alike if np.array_equal(tensor.numpy(), content)), None)
        if tensor is None:
            tensor = torch.from_numpy(content.copy())
            alike.append(tensor)
        return [array.dtype.str, list(array.shape), order, tensor]

    def _attributes(self, value: Any) -> list[Any]:
        """Class and attributes of an environment or space, and what it uses outside of them, see `outside`."""
        if any(vars(cls).get("__slots__") for cls in type(value).__mro__):
            raise UnreadableError(f"{type(value).__name__}, whose attributes are __slots__")
        attributes = {name: self.read(item) for name, item in vars(value).items()}
        shared = {}
        for key, variables in outside(type(value)).items():
            if key not in self.outside:
                self.outside.add(key)
                shared[key] = {name: self.read(item) for name, item in variables.items()}
        return [place(type(value)), attributes, shared]


class Writer:
    """Restores one state; remembers the objects in it by their numbers."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}

    def write(self, current: Any, saved: Any) -> Any:
        if not isinstance(saved, list):
            return saved
        kind, number, content = saved
        if kind == "same":
            return self.objects[content]
        if kind in ("list", "dict", "attributes"):  # may contain themselves
            return self._container(current, kind, number, content)
        restored = self.objects[number] = self._restored(current, kind, content)
        return restored

    def _container(self, current: Any, kind: str, number: int, content: Any) -> Any:
        if kind == "list":
            items = self.objects[number] = []
            items += self._items(current, content)
            return items
        if kind == "dict":
            old = current if isinstance(current, dict) else {}
            entries = self.objects[number] = {}
            for saved_key, item in content:
                key = self.write(None, saved_key)
                entries[key] = self.write(old.get(key), item)
            return entries
        name, attributes, shared = content
        if not isinstance(current, IN_PLACE) or place(type(current)) != name:
            raise UnreadableError(".".join(name))
        self.objects[number] = current
        for key in vars(current).keys() - attributes.keys():
            del vars(current)[key]
        for key, item in attributes.items():
            vars(current)[key] = self.write(vars(current).get(key), item)
        for key, variables in shared.items():
            self._write_outside(type(current), key, variables)
        return current

    def _write_outside(self, cls: type, key: str, variables: dict[str, Any]) -> None:
        """Restore variables of a class or a module, see `outside`."""
        owner, olds = owners(cls)[key], outside(cls)[key]
        for name, item in variables.items():
            value = self.write(olds[name], item)
            if value is olds[name] or (type(value) in PLAIN and value == olds[name]):
                continue
            setattr(owner, name, value) if isinstance(owner, type) else owner.update({name: value})

    def _items(self, current: Any, content: list[Any]) -> list[Any]:
        olds = list(current) if isinstance(current, (list, tuple, deque)) else []
        olds += [None] * (len(content) - len(olds))
        return [self.write(old, item) for old, item in zip(olds, content, strict=False)]

    def _restored(self, current: Any, kind: str, content: Any) -> Any:
        match kind:
            case "number":
                return array_from(content)[()]
            case "array":
                return array_from(content)
            case "view":
                saved_base, dtype, shape, strides, offset = content
                base = self.write(None, saved_base)
                return np.ndarray(shape, dtype, base if base.flags.c_contiguous else base.T, offset, strides)
            case "tensor":
                return content
            case "tuple":
                return tuple(self._items(current, content))
            case "frozenset":
                return frozenset(self.write(None, item) for item in content)
            case "deque":
                return deque(self._items(current, content[1]), content[0])
            case "generator":
                return np.random.Generator(self.write(None, content))
            case "bit_generator":
                name, state, sequence = content
                bit_generator = GENERATORS[name](np.random.SeedSequence(**self.write(None, sequence)))
                bit_generator.state = self.write(None, state)
                return bit_generator
            case "random_state":
                random_state = np.random.RandomState()
                random_state.set_state(self.write(None, content))
                return random_state
            case "random":
                generator = random.Random()
                generator.setstate(self.write(None, content))
                return generator
            case "torch_generator":
                device, state = content
                return torch.Generator(device).set_state(state)
            case "member":
                cls = type(current) if place(type(current)) == content[0] else find(content[0])
                if not (isinstance(cls, type) and issubclass(cls, Enum)):
                    raise UnreadableError(".".join(content[0]))
                return cls[content[1]]
            case "dtype":
                return np.dtype(content)
            case "method":
                owner, name = content
                return getattr(self.write(getattr(current, "__self__", None), owner), name)
            case "named":
                if (value := find(content)) is None:
                    raise UnreadableError(".".join(content))
                return value
            case "function":
                name, cells = content
                if not isinstance(current, FUNCTION) or place(current) != name:
                    raise UnreadableError(".".join(name))
                for cell, item in zip(current.__closure__ or (), cells, strict=True):
                    cell.cell_contents = self.write(cell.cell_contents, item)
                return current
            case "mujoco_data":
                mujoco = sys.modules["mujoco"]
                numbers, *derived = map(array_from, content)
                mujoco.mj_setState(current.model, current, numbers, mujoco.mjtState.mjSTATE_INTEGRATION)
                for name, values in zip(DERIVED, derived, strict=True):
                    getattr(current, name)[...] = values
                return current
            case "mujoco_model":
                saved, start = array_from(content), 0
                for array in model_arrays(current):
                    part = saved[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
                    start += array.nbytes
                    if not np.array_equal(array, part, equal_nan=array.dtype.kind == "f"):
                        array[...] = part
                return current
            case "static":
                return current
        raise ValueError(f"unknown kind of state: {kind}")


def array_from(content: list[Any]) -> np.ndarray:
    """An array, from its type, shape, order and bytes."""
    dtype, shape, order, tensor = content
    array = np.empty(shape, dtype, order=order)
    array.reshape(-1, order=order).view(np.uint8)[...] = tensor.numpy()
    return array


def model_arrays(model: Any) -> list[np.ndarray]:
    """The arrays of a MuJoCo model and its options: what an environment may randomize."""
    parts = (getattr(owner, name) for owner in (model, model.opt) for name in dir(owner) if not name.startswith("_"))
    return [part for part in parts if isinstance(part, np.ndarray) and part.size]
