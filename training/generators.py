"""Random number generators that anybody may use: the global ones of Python, NumPy and PyTorch."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed the global generators of Python, NumPy and PyTorch, from which environments may draw.

    Args:
        rank: those of Python and NumPy differ between ranks, as their environments do.
    """
    words = np.random.SeedSequence([seed, rank]).generate_state(2).tolist()
    random.seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002 (for environments that draw from it)
    torch.manual_seed(seed)


def generator_states() -> dict[str, Any]:
    """The states of the global generators of Python and NumPy, as data that `environments.states` can save."""
    return {"python": random.getstate(), "numpy": np.random.get_state(legacy=False)}  # noqa: NPY002


def restore_generators(states: dict[str, Any]) -> None:
    """Restore what `generator_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])  # noqa: NPY002


@contextlib.contextmanager
def own_generators(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all global generators for a block, and restore them after it."""
    states = generator_states()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        seed_all(seed)
        try:
            yield
        finally:
            restore_generators(states)
