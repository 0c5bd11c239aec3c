"""From the observations of an environment to the tensors that the networks take: one conversion, whoever asks."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from environments.errors import UsageError
from environments.masks import MASK, mask_last, mask_size


def to_tensor(values: Any, device: str) -> Tensor:
    """Numbers of any type as a tensor of the default float type.

    For a GPU they are copied to pinned memory first, which lets the transfer run without blocking the CPU.
    """
    return transferred(np.array(values, dtype=np.float32), device).to(torch.get_default_dtype())


def observation_tensor(observations: Any, device: str) -> Tensor:
    """Flat observations (..., D) as a floating-point tensor that keeps their precision.

    Integers of more than 16 bits and float64 stay in double precision until the normalizer has subtracted the mean:
    of a time stamp, float32 would keep only minutes. The tensor may share the memory of an array.
    """
    array = np.asarray(observations)
    if array.dtype.char not in "fd" or not array.dtype.isnative or not array.flags.writeable:
        narrow = array.dtype.itemsize <= 2 or array.dtype == np.float32
        array = np.array(array, dtype=np.float32 if narrow else np.float64)
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
    """

    def __init__(self, space: spaces.Space, actions: spaces.Space | None = None, frame_stack: int = 1) -> None:
        self.space, self.frame_stack = space, frame_stack
        self.size = spaces.flatdim(space)
        self.masked = actions is not None and mask_size(space, actions) > 0
        self.flattened: Any = mask_last(space) if self.masked else space

    def __call__(self, observations: Any) -> tuple[np.ndarray, bool]:
        """Flat observations (N, D), and whether it was only one.

        Args:
            observations: flat ones, (N, D) or (D,), or as the environment returns them: one, or a list of them.

        A list of integers is many observations of a Discrete space, not a flat one.

        Raises:
            UsageError: they are none of these.
        """
        shape = shape_of(observations)
        choices = isinstance(self.space, spaces.Discrete) and len(shape or ()) == 1
        integers = choices and np.issubdtype(np.asarray(observations).dtype, np.integer)
        if shape is not None and shape[-1:] == (self.size,) and len(shape) <= 2 and not integers:
            array = np.asarray(observations)
            return (array, False) if len(shape) == 2 else (array[None], True)
        if fits(self.space, observations):
            return self._flatten([observations]), True
        many = isinstance(observations, (list, tuple)) or (isinstance(observations, np.ndarray) and observations.ndim)
        if many and len(observations) and all(fits(self.space, observation) for observation in observations):
            return self._flatten(observations), False
        what = f"of shape {shape}" if shape is not None else f"of type {type(observations).__name__}"
        raise UsageError(f"observations {what} must be (N, {self.size}), ({self.size},) or of {self.space}")

    def _flatten(self, observations: Any) -> np.ndarray:
        if self.masked:
            observations = [(observation, observation[MASK]) for observation in observations]
        return np.array([spaces.flatten(self.flattened, observation) for observation in observations])


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
