"""A policy as one file that other programs can run: ONNX, or a program of torch.export."""

import copy
import importlib.util
import logging
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn

from environments import UsageError, first_line, observation_tensor
from training.files import write_atomically
from training.policy import Policy

SUFFIXES = (".onnx", ".pt2")


class Deployed(nn.Module):
    """From flat observations, (N, D), as the environment returns them, to its actions, (N, ...): the policy's mode."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.normalizer, self.actor, self.action_map = policy.normalizer, policy.actor, policy.action_map

    def forward(self, observations: Tensor) -> Tensor:
        actions: Tensor = self.action_map(self.actor(self.normalizer.normalize(observations)).mode)
        return actions


def export_policy(policy: Policy, path: Path) -> None:
    """Write a policy to a file: from `observations`, (N, D), to `actions`.

    Observations are in float32; in float64 where the space has that, or integers of more than 16 bits.

    Args:
        policy: on the CPU.
        path: ends in .onnx, which needs the packages onnx and onnxscript, or in .pt2.

    Raises:
        UsageError: a package is missing, or the policy cannot be exported.
    """
    missing = [name for name in ("onnx", "onnxscript") if path.suffix == ".onnx" and not importlib.util.find_spec(name)]
    if missing:
        raise UsageError(f"--export {path} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    space = gym.spaces.flatten_space(policy.observation_map.space)
    example = observation_tensor(np.zeros((2, policy.observation_map.size), space.dtype), "cpu")
    module = copy.deepcopy(Deployed(policy)).eval().requires_grad_(False)
    temporary = path.with_name(f"{path.stem}.tmp{path.suffix}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    try:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of PyTorch, about itself
            if path.suffix == ".pt2":
                some = {"observations": {0: torch.export.Dim("N")}}
                torch.export.save(torch.export.export(module, (example,), dynamic_shapes=some), temporary)
            else:
                names: dict[str, Any] = {"input_names": ["observations"], "output_names": ["actions"]}
                options: dict[str, Any] = {
                    "dynamic_shapes": {"observations": {0: "N"}},
                    "external_data": False,
                    "verbose": False,
                }
                torch.onnx.export(module, (example,), temporary, **names, **options)
        write_atomically(path, temporary.read_bytes())
    except Exception as error:  # an actor of a person's own may not be exportable
        raise UsageError(f"--export {path} failed: {type(error).__name__}: {first_line(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)
