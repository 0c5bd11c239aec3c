"""From the actions that an actor samples to those of an environment."""

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from environments.errors import UsageError
from environments.masks import choices, mask_size

UNBOUNDED = 1e9
"""Size from which on a bound of continuous actions is none: some environments write 1e38 or an integer's maximum."""


class ActionMap(nn.Module):
    """Maps the actions that an actor samples to actions that the environment accepts.

    Continuous actions: an entry whose range is finite on both sides is scaled from [-1, 1] to the range, then clipped
    to it. Other entries are not scaled, only clipped to a finite bound, if there is one; a bound of 1e9 or more is
    meant as none. Integers are rounded. Discrete actions: values counted from 0 are shifted to the first value of the
    space.

    Args:
        space: the action space, of one array; see `flat_actions` for others.
        env_id: for the error message.
        observations: the observation space, which may be a Dict with a mask of invalid actions.

    Attributes:
        continuous: whether the actions are continuous.
        size: number of entries of an action, A.
        bounded: continuous actions: whether the range of each entry is finite, (A,); else empty.
        nvec: discrete actions: number of values of each entry, (A,); else empty.
        mask_size: entries of the mask of invalid actions, the last ones of an observation; 0 without mask.

    Raises:
        UsageError: the space is not supported.
    """

    offset: Tensor
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, space: spaces.Space, env_id: str = "", observations: spaces.Space | None = None) -> None:
        super().__init__()
        self.space = space
        self.shape = space.shape or ()
        self.nvec = choices(space)
        self.mask_size = mask_size(observations, space)
        self.continuous = isinstance(space, spaces.Box)
        self.bounded: list[bool] = []
        offset: np.ndarray = np.zeros(1, dtype=np.int64)
        if isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
            self.dtype = torch.from_numpy(np.zeros(1, space.dtype)).dtype
        if isinstance(space, spaces.Box):
            # Integers are rounded from double precision, which holds those up to 2^53 exactly.
            self.rounds = not np.issubdtype(space.dtype, np.floating)
            kind = np.float64 if self.rounds else space.dtype
            low, high = space.low.astype(np.float64).ravel(), space.high.astype(np.float64).ravel()
            bounded = (np.abs(low) < UNBOUNDED) & (np.abs(high) < UNBOUNDED)
            # The inner `where` avoid inf - inf.
            scale = np.where(bounded, (np.where(bounded, high, 0) - np.where(bounded, low, 0)) / 2, 1)
            offset = np.where(bounded, (np.where(bounded, high, 0) + np.where(bounded, low, 0)) / 2, 0).astype(kind)
            for name, array in (("low", low), ("high", high), ("scale", scale)):
                self.register_buffer(name, torch.from_numpy(array.astype(kind)))
            self.bounded = bounded.tolist()
        elif isinstance(space, spaces.Discrete):
            offset = np.array([space.start])
        elif isinstance(space, spaces.MultiDiscrete):
            offset = space.start.ravel()
        self.size = len(self.nvec or self.bounded)
        if not self.size:
            raise UsageError(
                f"--env {env_id} has the action space {space}, which is not supported;"
                " use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of them"
            )
        self.register_buffer("offset", torch.from_numpy(offset))

    def forward(self, actions: Tensor) -> Tensor:
        """Map actions (..., A) of the actor to those of the environment, (..., *action shape), in its data type."""
        actions = actions.to(self.offset.dtype)
        if self.continuous:
            actions = (self.offset + self.scale * actions).clamp(self.low, self.high)
            actions = actions.round() if self.rounds else actions
        else:
            actions = actions + self.offset
        return actions.to(self.dtype).reshape((*actions.shape[:-1], *self.shape))
