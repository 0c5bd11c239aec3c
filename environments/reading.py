"""Reads the state of an environment, for `environments.states`."""

import random
import sys
import types
from collections import deque
from enum import Enum, Flag
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv

from environments.outside import FUNCTION, PLAIN, find, is_empty, outside, place
from environments.physics import data_state, model_state

# Not part of the state: these stay as the constructor made them. By name, since importing some of them takes time.
STATIC_BY_NAME = {"gymnasium.MujocoRenderer", "environments.Flattening"}
IN_PLACE = (gym.Env, VectorEnv, spaces.Space)
IN_PLACE_PACKAGES = {"minatar"}
"""Packages whose games are objects that the constructor makes, and whose state is their attributes."""
GENERATORS = {name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")}
GLOBAL: dict[str, Any] = {
    "numpy": getattr(np.random.rand, "__self__", None),
    "python": getattr(random.random, "__self__", None),
    "torch": torch.default_generator,
}
"""The generators of the modules, which the run saves; an environment may hold them, too."""
MAX_DEPTH = 100
METHODS = (types.MethodType, types.BuiltinMethodType, types.MethodWrapperType)
SEED_SEQUENCE = ("entropy", "spawn_key", "pool_size", "n_children_spawned")
LARGE = 4096
"""Bytes from which on arrays of the same content are saved once."""


def is_in_place(value: Any) -> bool:
    """Whether the attributes of an object are read and restored, and the object stays the one of the constructor."""
    return isinstance(value, IN_PLACE) or type(value).__module__.partition(".")[0] in IN_PLACE_PACKAGES


class UnreadableError(Exception):
    """An environment holds an object that may belong to its state, but cannot be saved or restored; names its type."""


class Reader:
    """Reads one state; remembers the objects in it, so that each is saved once."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}  # of the objects so far, by their `id`
        self.kept: list[Any] = []  # an `id` is unique only as long as its object lives
        self.outside: set[str] = set()  # owners of variables that were read
        self.depth = 0
        self.storages: dict[tuple[Any, ...], torch.UntypedStorage] = {}
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
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UnreadableError("a list in a list, more than a hundred deep")
        kind, content = self._content(value)
        self.depth -= 1
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
        if held := [name for name, generator in GLOBAL.items() if value is generator]:
            return "global", held[0]
        if type(value) is np.random.Generator:
            return "generator", self.read(value.bit_generator)
        if isinstance(value, np.random.BitGenerator) and type(value).__name__ in GENERATORS:
            sequence = value.seed_seq
            if not isinstance(sequence, np.random.SeedSequence):
                raise UnreadableError(f"a generator seeded by {type(sequence).__name__}")
            parts = {name: getattr(sequence, name) for name in SEED_SEQUENCE}
            return "bit_generator", [type(value).__name__, self.read(value.state), self.read(parts)]
        if type(value) is np.random.RandomState:
            return "random_state", self.read(value.get_state(legacy=False))
        if type(value) is random.Random:
            return "random", self.read(value.getstate())
        if isinstance(value, torch.Generator):
            return "torch_generator", [str(value.device), value.get_state()]
        if is_in_place(value):
            return "attributes", self._attributes(value)
        if isinstance(value, Enum):
            return "member", [place(type(value)), value.value if isinstance(value, Flag) else value.name]
        if isinstance(value, np.dtype):
            return "dtype", value.str
        if isinstance(value, METHODS) and not isinstance(value.__self__, (types.ModuleType, type(None))):
            if getattr(value.__self__, value.__name__, None) != value:
                raise UnreadableError(f"the method {value.__qualname__}")
            return "method", [self.read(value.__self__), value.__name__]
        if isinstance(value, (type, FUNCTION, types.BuiltinFunctionType, np.ufunc)) and find(place(value)) is value:
            return "named", [place(value), self._outside(value) if isinstance(value, FUNCTION) else {}]
        if isinstance(value, FUNCTION):
            cells = [None if is_empty(cell) else self.read(cell.cell_contents) for cell in value.__closure__ or ()]
            return "function", [place(value), cells, self._outside(value)]
        if mujoco and isinstance(value, mujoco.MjData):
            return "mujoco_data", [self._bytes(array) for array in data_state(value)]
        if mujoco and isinstance(value, mujoco.MjModel):
            arrays, numbers = model_state(value)
            return "mujoco_model", [self._bytes(arrays), numbers]
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
            layout = [array.dtype.str, list(array.shape), list(array.strides), offset, array.flags.writeable]
            return "view", [self.read(base), *layout]
        if base.base is not None and array.flags.writeable:
            raise UnreadableError(f"an array that shares the memory of a {type(base.base).__qualname__}")
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            raise UnreadableError("an array whose memory is in neither C nor Fortran order")
        return "array", [*self._bytes(array), array.flags.writeable]

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor; copies of tensors that share memory share theirs, which `torch.save` keeps."""
        if tensor.requires_grad or type(tensor) is not torch.Tensor:
            raise UnreadableError(f"a {type(tensor).__name__} with a gradient")
        storage = tensor.untyped_storage()
        if storage.nbytes() % tensor.element_size():  # memory that compiled code has divided
            return tensor.clone()
        key = (storage.data_ptr(), storage.nbytes(), tensor.dtype)
        if key not in self.storages:
            self.storages[key] = storage.clone()
        empty = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        return empty.set_(self.storages[key], tensor.storage_offset(), tensor.size(), tensor.stride())

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
        """Class and attributes of an object, and what it uses outside of them, see `outside`."""
        if any(vars(cls).get("__slots__") for cls in type(value).__mro__):
            raise UnreadableError(f"{type(value).__name__}, whose attributes are __slots__")
        attributes = {name: self.read(item) for name, item in vars(value).items()}
        return [place(type(value)), attributes, self._outside(type(value))]

    def _outside(self, root: Any) -> dict[str, dict[str, Any]]:
        """The variables that a class or function uses, see `outside`, but for those that were read before."""
        if (root_name := "root " + ".".join(place(root))) in self.outside:
            return {}
        self.outside.add(root_name)
        shared = {}
        for key, variables in outside(root).items():
            if key not in self.outside:
                self.outside.add(key)
                shared[key] = {name: self.read(item) for name, item in variables.values.items()}
        return shared
