"""Settings of a run: the dataclass that the scripts' `Config` extends, and reading them back."""

import dataclasses
import json
import math
import numbers
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import torch

from environments import UsageError, first_line
from networks import NetworkSettings


@dataclass(frozen=True, kw_only=True)
class RunSettings(NetworkSettings):
    """Settings of every run, whatever the algorithm."""

    script: ClassVar[str]
    given: ClassVar[frozenset[str]] = frozenset()  # of an instance: the settings that its constructor was given

    env: str = "Pendulum-v0"
    """Environment: a Gymnasium id; module:Id-v0 first imports the module, which registers it."""
    env_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments for the environment, as a JSON object: '{"g": 5}' for Pendulum-v0."""
    env_fn: str | None = None
    """Function that makes the environment from --env-kwargs, as module:function; --env is only its name."""
    frame_stack: int = 1
    """Observations of so many steps in a row are given to the networks, where one does not show all, such as speeds."""
    seed: int = 0
    """Seed of networks, actions and environments: the same seed gives the same results."""
    total_timesteps: int = 100_000
    """Timesteps to train, summed over all environments. Harder tasks need more."""
    run_dir: Path | None = None
    """Directory of the run, which must not hold one yet. None: runs/<env>_<epoch|step>_seed<seed>_<time>."""
    resume: Path | None = None
    """Continue the run in this directory with its settings; only --total-timesteps, --env-fn, --img-dir, --quiet can
    change."""
    reward_shaping: str | None = None
    """Potential-based reward shaping: built-in (MountainCar; the flag alone means that), or module:function, which maps
    observations (N, D) to potentials (N,)."""
    checkpoint_interval: int = 20_000
    """Timesteps between checkpoints; there is also one every minute, and at the end."""
    eval_interval: int = 0
    """Evaluate the policy about every so many timesteps of training, and keep the best one in best.pt; 0: never. The
    score that is printed at the end does not depend on it."""
    eval_episodes: int = 10
    """Episodes of each of these evaluations."""
    target_return: float | None = None
    """End the run once such an evaluation has at least this mean return."""
    img_dir: Path = Path("img")
    """Directory of the plot A2C_<env>.png (step update) or A2C_<env>_epoch.png (epoch update), which is overwritten."""
    device: str = "cpu"
    """Device of the networks: cpu, cuda or cuda:<n>. For small networks the CPU is faster."""
    quiet: bool = False
    """Print only errors."""

    def __new__(cls, *args: Any, **settings: Any) -> Self:
        self = super().__new__(cls)
        object.__setattr__(self, "given", frozenset(settings))
        return self

    def __post_init__(self) -> None:
        """Convert settings to their types, such as strings to paths and 1e5 to an integer.

        Raises:
            UsageError: one has another type; names it.
        """
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = converted(getattr(self, field.name), kinds[field.name])
            self.check(field.name, value is not INVALID, f"must be {type_name(kinds[field.name])}")
            object.__setattr__(self, field.name, value)

    def validate(self) -> None:
        """Raise a `UsageError` for the first invalid setting."""
        for name in ("total_timesteps", "checkpoint_interval", "frame_stack"):
            self.check(name, getattr(self, name) > 0, "must be at least 1")
        self.check("eval_interval", self.eval_interval >= 0, "must not be negative")
        self.check("eval_episodes", self.eval_episodes > 0, "must be at least 1")
        if self.target_return is not None:
            self.check("target_return", math.isfinite(self.target_return), "must be finite")
            self.check("target_return", self.eval_interval > 0, "needs --eval-interval")
        plain = self.frame_stack == 1 or not self.reward_shaping
        self.check(
            "frame_stack", plain, "cannot be combined with --reward-shaping, whose potential takes one observation"
        )
        self.check("seed", 0 <= self.seed < 2**32, "must be between 0 and 4294967295")
        self.check("hidden_sizes", all(size > 0 for size in self.hidden_sizes), "must be positive integers")
        self.check("mean_limit", 0 <= self.mean_limit < math.inf, "must be finite and not negative")
        try:
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(
                f"--device {self.device} is not available ({first_line(error)}); use cpu"
                + (f" or cuda:0 to cuda:{n - 1}" if (n := torch.cuda.device_count()) else "")
            ) from error

    def check(self, name: str, valid: bool, requirement: str) -> None:
        """Raise a `UsageError` that names the flag of a setting and its `requirement`, unless it is `valid`."""
        if not valid:
            value = getattr(self, name)
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UsageError(f"--{name.replace('_', '-')} {shown} {requirement}")


INVALID = object()


def converted(value: Any, kind: Any) -> Any:
    """A value as an instance of the type of a setting; `INVALID` if it is none and cannot be converted."""
    if isinstance(kind, types.UnionType):
        results = (converted(value, option) for option in typing.get_args(kind))
        return next((result for result in results if result is not INVALID), INVALID)
    if typing.get_origin(kind) is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        entries = tuple(converted(item, typing.get_args(kind)[0]) for item in items)
        return INVALID if INVALID in entries else entries
    if typing.get_origin(kind) is dict:
        try:  # as a checkpoint's config.json will have it
            value = json.loads(value) if isinstance(value, str) else json.loads(json.dumps(value))
        except (TypeError, ValueError):
            return INVALID
        return value if isinstance(value, dict) else INVALID
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if kind is int and number and float(value).is_integer():
        return int(value)
    if kind is float and number:
        return float(value)
    if kind is Path and isinstance(value, (str, os.PathLike)):
        return Path(value)
    if typing.get_origin(kind) is Literal:
        return value if value in typing.get_args(kind) else INVALID
    return value if isinstance(value, kind) and kind not in (int, float) else INVALID


def type_name(kind: Any) -> str:
    """The type of a setting in words."""
    if isinstance(kind, types.UnionType):
        return " or ".join(map(type_name, typing.get_args(kind)))
    if typing.get_origin(kind) is tuple:
        return "integers"
    if typing.get_origin(kind) is dict:
        return """a JSON object, as '{"g": 5}'"""
    if typing.get_origin(kind) is Literal:
        return " or ".join(typing.get_args(kind))
    names = {int: "an integer", float: "a number", bool: "True or False", str: "a string", Path: "a path"}
    return names.get(kind, "None")


ConfigType = TypeVar("ConfigType", bound=RunSettings)


def config_from(config_class: type[Any], settings: Mapping[str, Any]) -> Any:
    """An instance of a dataclass of settings from a `config.json`; settings that it does not have are ignored."""
    names = {field.name for field in dataclasses.fields(config_class)}
    return config_class(**{name: value for name, value in settings.items() if name in names})
