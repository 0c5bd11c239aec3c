"""Score a trained run: play whole episodes with its policy, its normaliser frozen, and print one JSON object.

python evaluate.py runs/DIR --episodes 100 --seed 7
"""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro

import runs
from utils import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Score a trained run by whole episodes of its policy, and print one JSON object."""

    directory: Annotated[Path, tyro.conf.Positional]
    """The run's directory."""
    episodes: int = 100
    """Episodes to play."""
    seed: int = 0
    """Seed of the environments and, with --stochastic, of the actions."""
    stochastic: bool = False
    """Sample actions from the policy, as in training, instead of taking its mode."""


def main() -> None:
    torch.set_num_threads(1)
    try:
        config = runs.tyro_cli(Config, sys.argv[1:])
        if config.episodes < 1:
            raise UsageError(f"--episodes {config.episodes} must be at least 1")
        policy, env_id = runs.load_policy(config.directory)
        score = runs.evaluate(policy, env_id, config.episodes, config.seed, config.stochastic)
    except UsageError as error:
        runs.fail(error, 2)
    print(json.dumps(score))


if __name__ == "__main__":
    main()
