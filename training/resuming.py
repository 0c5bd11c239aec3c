"""The settings that a run is trained with: checked, and for a resumed run those that it was begun with."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import torch

from environments import EnvFn, UsageError, import_function
from training.files import load_config
from training.settings import ConfigType, RunSettings, config_from

Train = TypeVar("Train", bound=Callable[..., Any])
CHANGEABLE = ("total_timesteps", "env_fn", "img_dir", "quiet")
"""Settings that a resumed run may change."""


def prepared(train: Train) -> Train:
    """Let a function that trains have its settings from `prepare` and the `env_fn` that they name; run in one thread.

    Small networks are slower in more threads, and the numbers would depend on how many there are.
    """

    @functools.wraps(train)
    def wrapper(config: Any, env_fn: EnvFn | None = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(config, get_type_hints(train)["config"]):
            raise UsageError(
                f"train takes the Config of {train.__module__}, not {type(config).__module__}.{type(config).__name__}"
            )
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            config = prepare(config)
            if env_fn is None and config.env_fn is not None:
                env_fn = import_function(config.env_fn, "--env-fn")
            return train(config, env_fn, *args, **kwargs)
        finally:
            torch.set_num_threads(threads)

    return cast(Train, wrapper)


def prepare(config: ConfigType) -> ConfigType:
    """Check the settings; if they resume a run, take all others from its `config.json`.

    Raises:
        UsageError: a setting is invalid, or was given, and is not that of the resumed run.
    """
    if config.resume:
        saved = saved_settings(type(config), config.resume)
        for name in config.given - {*CHANGEABLE, "resume"}:
            same = getattr(config, name) == getattr(saved, name)
            config.check(name, same, "cannot be changed when a run is resumed; remove it")
        changed = {name: getattr(config, name) for name in config.given & {*CHANGEABLE, "resume"}}
        config = dataclasses.replace(saved, **changed)
    elif config.env_fn is not None and config.env == RunSettings.env:  # the default names another environment
        config = dataclasses.replace(config, env=config.env_fn)
    config.validate()
    return config


def saved_settings(config_class: type[ConfigType], directory: Path) -> ConfigType:
    """The settings that a run was begun with; raises a `UsageError` if it is a run of the other script."""
    saved = load_config(directory)
    if saved["script"] != config_class.script:
        raise UsageError(
            f"--resume {directory} is a run of the {saved['script']} update;"
            f" use a2c_algorithm_{saved['script']}_update.py"
        )
    settings: ConfigType = config_from(config_class, saved)
    return settings
