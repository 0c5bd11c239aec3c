"""From the observations of an environment to the tensors that the networks take: one conversion, whoever asks."""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from environments.errors import UsageError, first_line
from environments.flattening import Flattening, stack
from environments.masks import mask_size


def to_tensor(values: Any, device: str) -> Tensor:
    """Numbers of any type as a tensor of the default float type.

    For a GPU they are copied to pinned memory first, which lets the transfer run without blocking the CPU.
    """
    return transferred(np.array(values, dtype=np.float32), device).to(torch.get_default_dtype())


def observation_tensor(observations: Any, device: str) -> Tensor:
    """Flat observations (..., D) as a tensor that keeps their precision: of bytes, or of floating-point numbers.

    Integers of more than 16 bits and float64 stay in double precision until the normalizer has subtracted the mean:
    of a time stamp, float32 would keep only minutes. The tensor may share the memory of an array.
    """
    array = np.asarray(observations)
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    narrow = array.dtype.itemsize <= 2 or array.dtype == np.float32
    kind = np.uint8 if array.dtype == np.uint8 else np.float32 if narrow else np.float64
    if array.dtype != kind or not array.flags.writeable:
        array = np.array(array, dtype=kind)
    return transferred(array, device)


def transferred(array: np.ndarray, device: str) -> Tensor:
    """An array as a tensor on a device."""
    tensor = torch.from_numpy(array)
    if device == "cpu":
        return tensor
    if device.startswith("cuda"):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class ObservationMap:
    """Maps observations as an environment returns them, one or many, to flat ones.

    Args:
        space: the observation space of the environment.
        actions: its action space; a mask of invalid actions comes last in a flat observation.
        frame_stack: observations of how many steps it stacks.

    Attributes:
        size: entries of a flat observation, D.
        layout: what these entries are.
    """

    def __init__(self, space: spaces.Space, actions: spaces.Space | None = None, frame_stack: int = 1) -> None:
        self.space, self.frame_stack = space, frame_stack
        self.flattening = Flattening(space, 0 if actions is None else mask_size(space, actions))
        self.layout = self.flattening.layout(frame_stack)
        self.size = self.layout.size

    def __call__(self, observations: Any) -> tuple[np.ndarray, bool]:
        """Flat observations (N, D), and whether it was only one.

        Args:
            observations: flat ones, (N, D) or (D,), or as the environment returns them: one, or a list of them. Where
                they are stacked, one is those of as many steps, the last one last.

        A list of integers is many observations of a Discrete space, not a flat one.

        Raises:
            UsageError: they are none of these.
        """
        if isinstance(observations, Tensor):
            observations = observations.numpy(force=True)
        shape = shape_of(observations)
        choices = isinstance(self.space, spaces.Discrete) and len(shape or ()) == 1 and self.frame_stack == 1
        integers = choices and np.issubdtype(np.asarray(observations).dtype, np.integer)
        if shape is not None and shape[-1:] == (self.size,) and len(shape) <= 2 and not integers:
            array = np.asarray(observations)
            return (array, False) if len(shape) == 2 else (array[None], True)
        with values_fit():
            if self._is_one(observations):
                return self._flat(observations)[None], True
            if is_sequence(observations) and len(observations) and all(map(self._is_one, observations)):
                return np.array(list(map(self._flat, observations))), False
        what = f"of shape {shape}" if shape is not None else f"of type {type(observations).__name__}"
        steps = f"; one is a list of those of the last {self.frame_stack} steps" if self.frame_stack > 1 else ""
        raise UsageError(
            f"observations {what} must be (N, {self.size}), ({self.size},) or of {self.space}, several in a list{steps}"
        )

    def _is_one(self, observation: Any) -> bool:
        """Whether this is one observation, or those of as many steps as are stacked."""
        if self.frame_stack == 1:
            return fits(self.space, observation)
        steps = is_sequence(observation) and len(observation) == self.frame_stack
        return steps and all(fits(self.space, step) or self._is_flat(step) for step in observation)

    def _is_flat(self, step: Any) -> bool:
        """Whether this is the observation of one step, flat."""
        return shape_of(step) == (self.size // self.frame_stack,)

    def _flat(self, observation: Any) -> np.ndarray:
        """One observation as a vector, (D,)."""
        if self.frame_stack == 1:
            return self.flattening(observation)
        steps = np.array([step if self._is_flat(step) else self.flattening(step) for step in observation])
        return stack(steps, self.layout.image_size // self.frame_stack)


@contextlib.contextmanager
def values_fit() -> Iterator[None]:
    """Turn an error in flattening an observation into a `UsageError`."""
    try:
        yield
    except ValueError as error:
        raise UsageError(f"an observation does not fit its space: {first_line(error)}") from error


def is_sequence(value: Any) -> bool:
    """Whether this is a list, tuple or array of several items."""
    return isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim > 0)


def fits(space: Any, observation: Any) -> bool:
    """Whether this is an observation of a space; numbers of a Box may have any type and size."""
    if isinstance(space, spaces.Box):
        return shape_of(observation) == space.shape
    if isinstance(space, spaces.Dict):  # which may have more entries, see `numeric_part`
        return isinstance(observation, dict) and all(
            name in observation and fits(part, observation[name]) for name, part in space.items()
        )
    if isinstance(space, spaces.Tuple):
        same = isinstance(observation, tuple) and len(observation) == len(space)
        return same and all(fits(part, entry) for part, entry in zip(space, observation, strict=True))
    if isinstance(space, spaces.Text) and not isinstance(observation, str):
        return False
    try:
        return bool(space.contains(observation))
    except Exception:  # a space can raise anything
        return False


def shape_of(values: Any) -> tuple[int, ...] | None:
    """The shape of a number, an array or nested lists of numbers; None if they are none."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):  # lists of different lengths, for example
        return None
    return array.shape if array.dtype.kind in "biuf" else None
