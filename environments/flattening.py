"""From observations of any space to vectors: images first, then numbers, then a mask of invalid actions."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from environments.masks import MASK
from networks import Image, ObservationLayout

SMALLEST_IMAGE = 3
"""Height and width of the smallest images that are seen as such."""


class Part(NamedTuple):
    """A part of a space that is no Dict or Tuple, or is the mask."""

    kind: int
    """0: an image; 1: numbers; 2: the mask of invalid actions."""
    path: tuple[Any, ...]
    """Names and indices that lead to it."""
    space: Any


class Flattening:
    """Flattens observations of a space to vectors (D,): images first, then numbers, then a mask of invalid actions.

    Args:
        space: of the observations.
        mask_size: entries of the mask, which is an entry of a Dict; 0 without mask.

    Attributes:
        space: of the vectors.
    """

    def __init__(self, space: spaces.Space, mask_size: int = 0) -> None:
        self.mask_size = mask_size
        self.parts = sorted(parts(space, masked=mask_size > 0), key=lambda part: part.kind)
        self.space: Any = spaces.flatten_space(spaces.Tuple([part.space for part in self.parts]))

    def layout(self, frames: int = 1) -> ObservationLayout:
        """What the entries of a vector are, or of as many as there are `frames`, see `stack`."""
        images = tuple(image_of(part.space) for part in self.parts if part.kind == 0)
        return ObservationLayout(frames * self.space.shape[0], images, frames, self.mask_size)

    def __call__(self, observation: Any) -> np.ndarray:
        """An observation as a vector; raises an exception of any type if it is not one of the space."""
        vectors: list[Any] = []
        for kind, path, space in self.parts:
            value = observation
            for key in path:
                value = value[key]
            vectors.append(spaces.flatten(space, value))
            # A transposed array would be scrambled. One of numbers may have another shape, such as () in place of (1,).
            if isinstance(space, spaces.Box) and len(space.shape) > 1 and np.shape(value) != space.shape:
                raise ValueError(f"an array of shape {np.shape(value)}")
            converted = kind == 0 and np.asarray(value).dtype != space.dtype
            if converted and not np.array_equal(vectors[-1], np.ravel(value)):
                raise ValueError(f"an image of {np.asarray(value).dtype}")
        return vectors[0] if len(vectors) == 1 else np.concatenate(vectors)


def parts(space: Any, path: tuple[Any, ...] = (), masked: bool = False) -> Iterator[Part]:
    """The parts of a space in its own order."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        yield Part(0 if is_image(space) else 1, path, space)
        return
    for key, entry in space.items() if isinstance(space, spaces.Dict) else enumerate(space):
        if masked and key == MASK:
            yield Part(2, (key,), entry)
        else:
            yield from parts(entry, (*path, key))


def is_image(space: Any) -> bool:
    """Whether a space has images: bytes or truth values in three dimensions, the channels first or last."""
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or space.dtype not in (np.uint8, np.bool_):
        return False
    first, middle, last = space.shape
    return min(middle, max(first, last)) >= SMALLEST_IMAGE and min(first, last) > 0


def image_of(space: spaces.Box) -> Image:
    """The image that a Box is; its channels are the shorter one of the first and the last dimension."""
    first, middle, last = space.shape
    return Image((first, middle, last), first < last, max(float(space.high.max()), 1.0))


def stack(frames: np.ndarray, image_size: int) -> np.ndarray:
    """One vector (K * D,) of the vectors (K, D) of K steps: all images first.

    Args:
        image_size: entries of the images of a step.
    """
    return np.concatenate((frames[:, :image_size].ravel(), frames[:, image_size:].ravel()))
