"""Environments, with flat observations and one interface for all.

`ActionMap` turns the actions that an actor samples into those of the environment. Vector environments never reset by
themselves (`AutoresetMode.DISABLED`): what `step` returns is always the true successor state, also at the end of an
episode. Importing this package registers Pendulum-v0.
"""

from environments.actions import ActionMap
from environments.advice import advice
from environments.errors import EnvironmentFault, UsageError, close_env, first_line
from environments.making import EnvFn, following_camera, make_env, make_maps, make_vector_env, maps_of, reset_all
from environments.modules import import_function
from environments.observations import ObservationMap, observation_tensor, to_tensor
from environments.pendulum import PENDULUM_V0
from environments.shaping import Shaping, load_shaping, shaping_reward

__all__ = [
    "PENDULUM_V0",
    "ActionMap",
    "EnvFn",
    "EnvironmentFault",
    "ObservationMap",
    "Shaping",
    "UsageError",
    "advice",
    "close_env",
    "first_line",
    "following_camera",
    "import_function",
    "load_shaping",
    "make_env",
    "make_maps",
    "make_vector_env",
    "maps_of",
    "observation_tensor",
    "reset_all",
    "shaping_reward",
    "to_tensor",
]
