"""Spaces that are more than one array: what of them the networks can use, and the way back."""

from typing import Any

import numpy as np
from gymnasium import spaces

from environments.errors import UsageError


def numeric_part(space: spaces.Space) -> spaces.Space | None:
    """The part of an observation space that can be flattened to a vector: a Dict without its other entries.

    Text of a space of its own, a graph or a sequence of unknown length are such entries. None if nothing is left.
    """
    if isinstance(space, spaces.Dict):
        parts = {name: part for name, entry in space.items() if (part := numeric_part(entry)) is not None}
        return space if list(parts.values()) == list(space.values()) else spaces.Dict(parts) if parts else None
    try:
        return space if space.is_np_flattenable else None
    except NotImplementedError:  # a kind of space that Gymnasium does not know
        return None


def left_out(space: spaces.Space) -> list[str]:
    """The names of the entries of an observation space that `numeric_part` leaves out."""
    if not isinstance(space, spaces.Dict):
        return []
    names = [name for name, entry in space.items() if numeric_part(entry) is None]
    return names + [name for entry in space.values() if numeric_part(entry) is not None for name in left_out(entry)]


def flat_actions(space: spaces.Space, env_id: str) -> spaces.Space:
    """An action space as one array: of a Dict or Tuple, the entries of its parts one after the other.

    Raises:
        UsageError: it has both continuous and discrete parts, or parts of another kind.
    """
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return space
    parts = leaves(space)
    if parts and all(isinstance(part, spaces.Box) for part in parts):
        low, high = (np.concatenate([np.ravel(getattr(part, end)) for part in parts]) for end in ("low", "high"))
        return spaces.Box(low, high, dtype=np.result_type(np.float32, low.dtype).type)
    nvec: list[int] = []
    start: list[int] = []
    for part in parts or [space]:
        if isinstance(part, spaces.Discrete):
            nvec, start = [*nvec, int(part.n)], [*start, int(part.start)]
        elif isinstance(part, spaces.MultiDiscrete):
            nvec, start = [*nvec, *part.nvec.ravel().tolist()], [*start, *part.start.ravel().tolist()]
        elif isinstance(part, spaces.MultiBinary):
            size = int(np.prod(part.shape))
            nvec, start = [*nvec, *[2] * size], [*start, *[0] * size]
        else:
            raise UsageError(
                f"--env {env_id} has the action space {space}, which is not supported: its parts must be all Box, or"
                " all Discrete, MultiDiscrete and MultiBinary"
            )
    return spaces.MultiDiscrete(nvec, start=start)


def leaves(space: Any) -> list[spaces.Space]:
    """The parts of a Dict or Tuple that are neither, in order."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = space.values() if isinstance(space, spaces.Dict) else space
        return [leaf for part in parts for leaf in leaves(part)]
    return [space]


def structured(space: spaces.Space, action: np.ndarray) -> Any:
    """An action of a Dict or Tuple space, from the flat one; see `flat_actions`."""
    entries = np.ravel(action)
    position = 0

    def build(part: Any) -> Any:
        nonlocal position
        if isinstance(part, spaces.Dict):
            return {name: build(entry) for name, entry in part.items()}
        if isinstance(part, spaces.Tuple):
            return tuple(build(entry) for entry in part)
        size, shape = int(np.prod(part.shape)), part.shape
        values = entries[position : position + size].reshape(shape)
        position += size
        if np.issubdtype(part.dtype, np.integer):
            values = np.rint(values)
        return values.astype(part.dtype)[()]

    return build(space)


def to_data(space: spaces.Space) -> Any:
    """A space as plain data, for a checkpoint; None if a part or key of it is not of Gymnasium's or Python's kinds."""
    try:
        return plain(space)
    except TypeError:
        return None


def plain(space: Any) -> list[Any]:
    """A space as plain data; raises a `TypeError` if its kind, or that of a key, is not known."""
    match space:
        case spaces.Box():
            # One number in place of an image of equal ones.
            limits = space.low, space.high
            ends = [end.min().item() if end.size and end.min() == end.max() else end.tolist() for end in limits]
            return ["Box", *ends, list(space.shape), str(space.dtype)]
        case spaces.Discrete():
            return ["Discrete", int(space.n), int(space.start), str(space.dtype)]
        case spaces.MultiDiscrete():
            return ["MultiDiscrete", space.nvec.tolist(), space.start.tolist(), str(space.dtype)]
        case spaces.MultiBinary():
            return ["MultiBinary", space.n if isinstance(space.n, int) else [int(n) for n in space.n]]
        case spaces.Text():
            return ["Text", int(space.max_length), int(space.min_length), "".join(map(str, space.character_list))]
        case spaces.Dict() if all(type(name) in (str, int) for name in space):  # no enum, no number of NumPy
            return ["Dict", [[name, plain(entry)] for name, entry in space.items()]]
        case spaces.Tuple():
            return ["Tuple", [plain(entry) for entry in space]]
        case spaces.OneOf():
            return ["OneOf", [plain(entry) for entry in space.spaces]]
    raise TypeError(type(space).__name__)


def from_data(data: Any) -> Any:
    """The space that `to_data` wrote; raises a `ValueError` if there is none."""
    match data:
        case ["Box", low, high, shape, dtype]:
            ends = [np.broadcast_to(np.array(end, dtype), shape) for end in (low, high)]
            return spaces.Box(ends[0], ends[1], dtype=np.dtype(dtype).type)
        case ["Discrete", n, start, dtype]:
            return spaces.Discrete(n, start=start, dtype=np.dtype(dtype).type)
        case ["MultiDiscrete", nvec, start, dtype]:
            return spaces.MultiDiscrete(nvec, dtype=np.dtype(dtype).type, start=start)
        case ["MultiBinary", n]:
            return spaces.MultiBinary(n)
        case ["Text", longest, shortest, characters]:
            return spaces.Text(longest, min_length=shortest, charset=characters)
        case ["Dict", entries]:
            return spaces.Dict({name: from_data(entry) for name, entry in entries})
        case ["Tuple", entries]:
            return spaces.Tuple([from_data(entry) for entry in entries])
        case ["OneOf", entries]:
            return spaces.OneOf([from_data(entry) for entry in entries])
    raise ValueError("it has a space of an unknown kind")
