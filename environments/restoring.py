"""Restores what `environments.states` has read."""

import random
from collections import deque
from enum import Enum, Flag
from typing import Any

import numpy as np
import torch

from environments.outside import FUNCTION, PLAIN, find, is_empty, is_library, outside, place
from environments.physics import set_data_state, set_model_state
from environments.reading import GENERATORS, GLOBAL, UnreadableError, is_in_place


class Writer:
    """Restores one state; remembers the objects in it by their numbers."""

    def __init__(self) -> None:
        self.objects: dict[int, Any] = {}
        self.taken: dict[int, int] = {}  # numbers of the objects changed in place, by their `id`

    def write(self, current: Any, saved: Any) -> Any:
        if not isinstance(saved, list):
            return saved
        kind, number, content = saved
        if kind == "same":
            return self.objects[content]
        if kind in ("list", "dict", "deque", "attributes", "function"):  # may contain themselves
            return self._container(current, kind, number, content)
        restored = self.objects[number] = self._restored(current, kind, content)
        return restored

    def _container(self, current: Any, kind: str, number: int, content: Any) -> Any:
        if kind == "list":
            items = self.objects[number] = []
            items += self._items(current, content)
            return items
        if kind == "deque":
            queue = self.objects[number] = deque(maxlen=content[0])
            queue.extend(self._items(current, content[1]))
            return queue
        if kind == "dict":
            old = current if isinstance(current, dict) else {}
            entries = self.objects[number] = {}
            for saved_key, item in content:
                key = self.write(None, saved_key)
                entries[key] = self.write(old.get(key), item)
            return entries
        name, parts, shared = content
        function = isinstance(current, FUNCTION)
        known = current if function else type(current)
        if function != (kind == "function") or not (function or is_in_place(current)) or place(known) != name:
            raise UnreadableError(f"{'.'.join(name)}, where the constructor made a {type(current).__name__}")
        if self.taken.setdefault(id(current), number) != number:
            raise UnreadableError(f"two objects of {'.'.join(name)}, where the constructor made one")
        self.objects[number] = current
        if kind == "attributes":
            self._write_attributes(current, parts)
        else:
            for cell, item in zip(getattr(current, "__closure__", None) or (), parts, strict=True):
                if not is_empty(cell):
                    cell.cell_contents = self.write(cell.cell_contents, item)
        self._write_outside(known, shared)
        return current

    def _write_attributes(self, current: Any, attributes: dict[str, Any]) -> None:
        for key in vars(current).keys() - attributes.keys():
            del vars(current)[key]
        for key, item in attributes.items():
            vars(current)[key] = self.write(vars(current).get(key), item)

    def _write_outside(self, root: Any, shared: dict[str, dict[str, Any]]) -> None:
        """Restore what a class or function uses outside of the attributes."""
        current = outside(root) if shared else {}
        for key, variables in shared.items():
            for name, item in variables.items():
                if key not in current or name not in current[key].values:
                    raise UnreadableError(f"{name} of {key}, which is not there now")
                old = current[key].values[name]
                value = self.write(old, item)
                if value is not old and not (type(value) in PLAIN and value == old):
                    current[key].set(name, value)

    def _items(self, current: Any, content: list[Any]) -> list[Any]:
        olds = list(current) if isinstance(current, (list, tuple, deque)) else []
        olds += [None] * (len(content) - len(olds))
        return [self.write(old, item) for old, item in zip(olds, content, strict=False)]

    def _restored(self, current: Any, kind: str, content: Any) -> Any:
        match kind:
            case "number":
                return array_from(content)[()]
            case "array":
                *content, writeable = content
                array = array_from(content)
                array.flags.writeable = writeable
                return array
            case "view":
                saved_base, dtype, shape, strides, offset, writeable = content
                base = self.write(None, saved_base)
                array = np.ndarray(shape, dtype, base if base.flags.c_contiguous else base.T, offset, strides)
                array.flags.writeable = writeable
                return array
            case "tensor":
                return content
            case "tuple":
                return tuple(self._items(current, content))
            case "frozenset":
                return frozenset(self.write(None, item) for item in content)
            case "global":
                return GLOBAL[content]
            case "generator":
                return np.random.Generator(self.write(None, content))
            case "bit_generator":
                name, state, sequence = content
                bit_generator = GENERATORS[name](np.random.SeedSequence(**self.write(None, sequence)))
                bit_generator.state = self.write(None, state)
                return bit_generator
            case "random_state":
                state = self.write(None, content)
                random_state = np.random.RandomState(GENERATORS[state["bit_generator"]]())
                random_state.set_state(state)
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
                return cls(content[1]) if issubclass(cls, Flag) else cls[content[1]]
            case "dtype":
                return np.dtype(content)
            case "method":
                owner, name = content
                return getattr(self.write(getattr(current, "__self__", None), owner), name)
            case "named":
                where, shared = content
                value = find(where)
                # A checkpoint that somebody has changed must not make an environment call another function.
                if value is None or (is_library(value, "") and value is not current):
                    raise UnreadableError(".".join(where))
                self._write_outside(value, shared)
                return value
            case "mujoco_data":
                set_data_state(current, *map(array_from, content))
                return current
            case "mujoco_model":
                set_model_state(current, array_from(content[0]), content[1])
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
