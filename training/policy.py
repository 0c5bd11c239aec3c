"""The trained policy: acting, loading and evaluating."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn

import environments
from environments import ActionMap, EnvFn, EnvironmentFault, ObservationMap, UsageError, close_env, observation_tensor
from environments.structure import from_data, to_data
from networks import Critic, make_actor
from training.checkpoint import fitting, load_checkpoint
from training.files import BEST, CHECKPOINT, load_config
from training.generators import own_generators
from training.settings import RunSettings, config_from
from utils import ObservationNormalizer

REMOVED = {"activation": "leaky_relu", "state_std": False}
"""Settings of networks that older versions had, and the values of them that the networks of this one have."""

EVALUATION_ENVS = {"epoch": 20, "step": 1}
"""Environments of an evaluation, by script: of one that the step update trains alone there may be only one."""
MAX_EPISODE_STEPS = 10_000
"""Steps after which an episode of an evaluation is cut, unless the environment was registered with a higher limit."""


class Policy:
    """An actor, with the observation normalizer before it and the action map after it.

    Args:
        actor: maps normalized observations (N, D) to a distribution.
        normalizer: is not updated.
        action_map: from sampled actions to those of the environment.
        observation_map: from observations of the environment to flat ones.

    Attributes:
        env_kwargs: arguments of the environment that it was trained in.
    """

    def __init__(
        self,
        actor: nn.Module,
        normalizer: ObservationNormalizer,
        action_map: ActionMap,
        observation_map: ObservationMap,
    ) -> None:
        self.actor = actor
        self.normalizer = normalizer
        self.action_map = action_map
        self.observation_map = observation_map
        self.device = next(actor.parameters()).device
        self.env_kwargs: Mapping[str, Any] = {}

    @torch.no_grad()
    def __call__(self, observations: Any, stochastic: bool = False) -> np.ndarray:
        """The environment's actions for one or many observations: the mode of the policy, or a sample.

        Args:
            observations: flat ones, (N, D) or (D,), or as the environment returns them, one or a list of them.
            stochastic: sample actions, from PyTorch's global generator.

        Returns:
            As many actions, or one. Of a Dict or Tuple, the entries of its parts one after the other.

        Raises:
            UsageError: the observations do not fit the environment's space.
        """
        flat, single = self.observation_map(observations)
        distribution = self.actor(self.normalizer.normalize(observation_tensor(flat, str(self.device))))
        actions = distribution.sample() if stochastic else distribution.mode
        actions = self.action_map(actions).cpu().numpy()
        return actions[0] if single else actions


def policy_state(policy: Policy) -> dict[str, Any]:
    """What `load_policy` needs of a checkpoint, as tensors and plain data; a copy."""
    parts = {"actor": policy.actor, "obs_normalizer": policy.normalizer}
    copies = {name: {key: v.clone() for key, v in part.state_dict().items()} for name, part in parts.items()}
    return copies | {"spaces": spaces_state(policy)}


def spaces_state(policy: Policy) -> list[Any]:
    """The spaces of a policy as plain data: of its observations and its actions."""
    return [to_data(policy.observation_map.space), to_data(policy.action_map.space)]


def load_policy(directory: str | Path, env_fn: EnvFn | None = None, best: bool = False) -> tuple[Policy, str]:
    """The policy of a run, finished or not, and the id of its environment.

    The environment is made only if the checkpoint does not hold its spaces: it is an old one, or they are of a kind of
    their own.

    Args:
        directory: of the run.
        env_fn: makes the environment, if it is not registered.
        best: the best policy of the evaluations during the run (`eval_interval`), not the last one.

    Raises:
        UsageError: the directory holds no run, its files are damaged, or its networks are of a kind that has gone.
    """
    directory = Path(directory)
    saved, state = load_config(directory), load_checkpoint(directory, BEST if best else CHECKPOINT)
    for name, value in REMOVED.items():
        if saved.get(name, value) != value:
            raise UsageError(
                f"{directory}: this version has no networks with {name} {saved[name]}; use the commit in config.json"
            )
    config = config_from(RunSettings, saved)
    observations, actions = state.get("spaces") or (None, None)
    with fitting(directory):
        if observations and actions:
            space = from_data(observations)
            if config.frame_stack > 1 and state["format"] < 10:  # of all steps
                space = gym.spaces.Box(space.low[0], space.high[0], dtype=space.dtype)
            action_map, observation_map = environments.maps_of(space, from_data(actions), config.frame_stack)
        else:
            with closing(environments.make_env(config.env, env_fn, config.env_kwargs, config.frame_stack)) as env:
                action_map, observation_map = environments.make_maps(env)
        layout = observation_map.layout
        for what, first_format, is_there in (("action masks", 8, layout.mask_size), ("images", 12, layout.images)):
            if is_there and state["format"] < first_format:
                why = f"was trained with other networks for {what}; use the commit in its config.json"
                raise UsageError(f"{directory} {why}")
        actor = make_actor(layout, action_map.nvec, action_map.bounded, config)
        actor.load_state_dict(state["actor"])
        normalizer = ObservationNormalizer(layout.size, unchanged=layout.unchanged)
        normalizer.load_state_dict(state["obs_normalizer"])
    policy = Policy(actor, normalizer, action_map, observation_map)
    policy.env_kwargs = config.env_kwargs
    return policy, config.env


def load_critic(directory: Path, policy: Policy) -> Callable[[np.ndarray], np.ndarray]:
    """The critic of a run, as a function from observations (N, D) to values (N,).

    Args:
        directory: of the run.
        policy: of the same run.
    """
    config, state = config_from(RunSettings, load_config(directory)), load_checkpoint(directory)
    critic = Critic(policy.observation_map.layout, config)
    with fitting(directory):
        critic.load_state_dict(state["critic"])

    @torch.no_grad()
    def value(observations: np.ndarray) -> np.ndarray:
        return critic(policy.normalizer.normalize(observation_tensor(observations, "cpu"))).numpy()

    return value


def time_limit(env_id: str) -> int:
    """The time limit that an environment was registered with, in steps; 0 if it has none."""
    spec = gym.registry.get(env_id.rpartition(":")[2])
    return (spec.max_episode_steps if spec else None) or 0


@contextlib.contextmanager
def closing(env: Any) -> Iterator[Any]:
    """Close an environment, or vector of them, at the end of the block in every case.

    Raises:
        EnvironmentFault: in the block, the environment tried to end the process.
    """
    try:
        yield env
    except SystemExit as stop:
        raise EnvironmentFault(f"the environment called sys.exit({stop.code!r})") from stop
    finally:
        close_env(env)


def evaluate(
    policy: Policy,
    env_id: str,
    episodes: int,
    seed: int,
    stochastic: bool = False,
    env_fn: EnvFn | None = None,
    num_envs: int = 20,
    env_kwargs: Mapping[str, Any] | None = None,
    before_step: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Play whole episodes with a policy; returns are sums of the environment's own rewards.

    The episodes are divided among the environments beforehand: taking the first ones to end would favor short ones.

    Args:
        policy: is not changed.
        env_id: of the environment.
        episodes: to play.
        seed: of the environments and of sampled actions; the global generators are restored afterwards.
        stochastic: sample actions instead of taking the mode.
        env_fn: makes the environment, if it is not registered.
        num_envs: environments that are stepped together, at most one per episode.
        env_kwargs: arguments for the environment, or for `env_fn`; None: those of the policy's training.
        before_step: called before each step of the environments, for example to show progress.

    Returns:
        `env`, `episodes`, `mean_return`, `std_return`, `min_return`. An episode is cut after 10,000 steps, or the time
        limit that the environment was registered with if that is higher; this is said on standard error.

    Raises:
        UsageError: the actions of the environment are others than those of the policy, or a number is too small.
        EnvironmentFault: the environment returned an observation or reward that is not finite.
    """
    if min(episodes, num_envs) < 1 or seed < 0:
        raise UsageError(f"episodes {episodes} and num_envs {num_envs} must be at least 1, seed {seed} at least 0")
    num_envs, stacked = min(episodes, num_envs), policy.observation_map.frame_stack
    env_kwargs = policy.env_kwargs if env_kwargs is None else env_kwargs
    remaining = np.array([len(range(i, episodes, num_envs)) for i in range(num_envs)])
    current, lengths = np.zeros(num_envs), np.zeros(num_envs, dtype=np.int64)
    returns: list[float] = []
    endless = 0
    with (
        own_generators(seed, policy.device),
        closing(environments.make_vector_env(env_id, num_envs, env_fn, env_kwargs, frame_stack=stacked)) as envs,
    ):
        (actions, observed), trained = environments.make_maps(envs), policy.observation_map
        if actions.space != policy.action_map.space:
            raise UsageError(
                f"{env_id} has the actions {actions.space}, and the policy those of {policy.action_map.space}"
            )
        if observed.layout != trained.layout:
            raise UsageError(f"{env_id} has the observations {observed.space}, and the policy those of {trained.space}")
        limit = max(MAX_EPISODE_STEPS, time_limit(env_id) if env_fn is None else 0)
        observations = environments.reset_all(envs, seed)
        torch.manual_seed(seed)  # again: an environment may have drawn from it, or seeded it
        while remaining.any():
            before_step()
            observations, rewards, terminated, truncated, _ = envs.step(policy(observations, stochastic))
            for what, values in (("an observation", observations), ("a reward", rewards)):
                if not np.isfinite(values).all():
                    raise EnvironmentFault(f"{env_id} returned {what} that is not finite while it was evaluated")
            current += rewards
            lengths += 1
            cut = (lengths >= limit) & ~(terminated | truncated)
            endless += int((cut & (remaining > 0)).sum())
            done = terminated | truncated | cut
            if done.any():
                returns += current[done & (remaining > 0)].tolist()
                remaining[done] = np.maximum(remaining[done] - 1, 0)
                current[done], lengths[done] = 0.0, 0
                observations, _ = envs.reset(options={"reset_mask": done})
    if endless:
        print(
            f"{endless} of {episodes} episodes of {env_id} did not end within {limit:,} steps and were cut there",
            file=sys.stderr,
        )
    return {
        "env": env_id,
        "episodes": episodes,
        "mean_return": float(np.mean(returns)),
        "std_return": float(np.std(returns)),
        "min_return": float(np.min(returns)),
    }
