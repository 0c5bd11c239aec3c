"""Advantage actor-critic (A2C), epoch update: collect `sample_size` transitions, update once, throw the batch away.

    python a2c_algorithm_epoch_update.py --env Pendulum-v0

Read `train` first: it is the whole algorithm, and what it calls stands above it. Sources: Mnih et al. 2016 (arXiv
1602.01783) for A2C, Schulman et al. 2016 (arXiv 1506.02438) for the advantages.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

import environments
import runs
from environments import ActionMap, EnvFn
from networks import Critic
from runs import Run
from utils import AdvantageNormalizer, ObservationNormalizer, RewardNormalizer, explained_variance, gae


@dataclass(frozen=True, kw_only=True)
class Config(runs.RunConfig):
    """Train A2C: collect sample_size transitions in num_envs environments, update once, throw them away."""

    script: ClassVar[str] = "epoch"

    num_envs: int = 16
    """Environments that step together."""
    sample_size: int = 512
    """Transitions of a batch, over all environments."""
    gamma: float = 0.99
    """Discount of future rewards."""
    gae_lambda: float = 0.98
    """Decay of generalised advantage estimation; 0 switches it off and leaves the one-step TD error."""
    actor_lr: float = 2.1e-3
    """Learning rate of the actor; it falls linearly to 0 over the run, as the critic's does."""
    critic_lr: float = 2.35e-3
    """Learning rate of the critic."""
    critic_updates: int = 10
    """Gradient steps of the critic on each batch; the actor always takes one."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus in the actor's loss."""
    max_grad_norm: float = 0.5
    """Norm to which gradients are clipped, the actor's and the critic's each."""
    obs_norm: bool = True
    """Normalise observations by their running mean and deviation."""
    reward_norm: bool = True
    """Divide rewards by the running deviation of the discounted return."""

    def validate(self) -> None:
        super().validate()
        for name in ("num_envs", "sample_size", "critic_updates", "actor_lr", "critic_lr", "max_grad_norm"):
            runs.check(self, name, getattr(self, name) > 0, "must be greater than 0")
        for name in ("gamma", "gae_lambda"):
            runs.check(self, name, 0 <= getattr(self, name) <= 1, "must be between 0 and 1")
        runs.check(self, "ent_coef", self.ent_coef >= 0, "must not be negative")
        whole = self.sample_size % self.num_envs == 0
        runs.check(self, "sample_size", whole, f"must be a multiple of --num-envs {self.num_envs}")


class Batch(NamedTuple):
    """Transitions of T steps in N environments, in the order in which they happened."""

    observations: np.ndarray
    """s, normalised, (T, N, D) float32."""
    actions: np.ndarray
    """a, as the actor put it out, (T, N, A)."""
    rewards: np.ndarray
    """r, shaped and normalised, (T, N)."""
    next_observations: np.ndarray
    """s', normalised, (T, N, D): at an episode's end its last observation, not the first of the next."""
    terminated: np.ndarray
    """Whether the task ended at s', (T, N)."""
    truncated: np.ndarray
    """Whether the episode was cut at s', (T, N)."""


class A2C:
    """What is learned: actor, critic, their optimisers and the running statistics."""

    def __init__(self, config: Config, observation_size: int, action_map: ActionMap) -> None:
        self.config = config
        self.action_map = action_map
        self.actor = runs.make_actor(config, observation_size, action_map)
        # V = 0 everywhere is hope, where rewards are negative: what was never tried looks better than what was.
        self.critic = Critic(observation_size, config.hidden_sizes, config.activation, last_gain=0.0)
        self.actor.to(config.device)
        self.critic.to(config.device)
        self.actor_optimizer = torch.optim.RMSprop(self.actor.parameters(), lr=config.actor_lr)
        self.critic_optimizer = torch.optim.RMSprop(self.critic.parameters(), lr=config.critic_lr)
        self.obs_normalizer = ObservationNormalizer((observation_size,))
        self.reward_normalizer = RewardNormalizer(config.num_envs, config.gamma)
        self.advantage_normalizer = AdvantageNormalizer()
        self.parts = {
            "actor": self.actor,
            "critic": self.critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "obs_normalizer": self.obs_normalizer,
            "reward_normalizer": self.reward_normalizer,
            "advantage_normalizer": self.advantage_normalizer,
        }
        self.potential = environments.load_potential(config.reward_shaping, config.env)

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        """Sample actions (N, A) for normalised observations (N, D)."""
        return self.actor(self.tensor(observations)).sample().cpu().numpy()

    def update(self, batch: Batch, lr_scale: float) -> dict[str, float]:
        """Learn from a batch: one gradient step of the actor, `critic_updates` of the critic.

        Args:
            batch: collected with the actor as it is now, and of no use once the actor has changed.
            lr_scale: share of the learning rates to use.

        Returns:
            The metrics of `runs.METRICS`.
        """
        observations = self.tensor(batch.observations)
        with torch.no_grad():
            values = self.critic(observations).cpu().numpy()
            next_values = self.critic(self.tensor(batch.next_observations)).cpu().numpy()
        advantages, returns = gae(
            batch.rewards,
            values,
            next_values,
            batch.terminated,
            batch.truncated,
            self.config.gamma,
            self.config.gae_lambda,
        )
        for optimizer, lr in (
            (self.actor_optimizer, self.config.actor_lr),
            (self.critic_optimizer, self.config.critic_lr),
        ):
            optimizer.param_groups[0]["lr"] = lr * lr_scale
        # The actor's gradient is that of the policy which collected the batch: it may take one step with it. The
        # critic regresses on targets that stay what they are: it may take many.
        metrics = self.update_actor(
            observations, self.tensor(batch.actions), self.tensor(self.advantage_normalizer(advantages))
        )
        metrics |= self.update_critic(observations, self.tensor(returns))
        return metrics | {"explained_variance": explained_variance(values, returns)}

    def update_actor(self, observations: Tensor, actions: Tensor, advantages: Tensor) -> dict[str, float]:
        """One gradient step on -mean(log pi(a|s) * A) - ent_coef * mean(entropy)."""
        loss, entropy = policy_loss(self.actor, observations, actions, advantages, self.config.ent_coef)
        grad_norm = self.descend(self.actor_optimizer, loss)
        return {"policy_loss": loss.item(), "entropy": entropy.item(), "actor_grad_norm": grad_norm}

    def update_critic(self, observations: Tensor, returns: Tensor) -> dict[str, float]:
        """`critic_updates` gradient steps on mean((V(s) - return)^2); the metrics are those of the first."""
        metrics: dict[str, float] = {}
        for _ in range(self.config.critic_updates):
            loss = (self.critic(observations) - returns).square().mean()
            grad_norm = self.descend(self.critic_optimizer, loss)
            metrics = metrics or {"value_loss": loss.item(), "critic_grad_norm": grad_norm}
        return metrics

    def descend(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        """Take one step of an optimiser down the loss; returns the norm of the gradient before it was clipped."""
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], self.config.max_grad_norm)
        optimizer.step()
        return grad_norm.item()

    def tensor(self, array: np.ndarray) -> Tensor:
        """An array on the networks' device, in float32 where it is floating."""
        dtype = torch.float32 if np.issubdtype(array.dtype, np.floating) else None
        return torch.as_tensor(array, dtype=dtype, device=self.config.device)


def policy_loss(
    actor: nn.Module, observations: Tensor, actions: Tensor, advantages: Tensor, ent_coef: float
) -> tuple[Tensor, Tensor]:
    """The actor's loss, whose gradient is minus the policy gradient, and the mean entropy.

    log pi(a|s) is computed anew from the stored observations and actions. Log-probabilities kept from the collection,
    where no graph was recorded, would be constants, and the loss without a gradient.

    Args:
        observations: (..., D), normalised as they were when the actions were taken.
        actions: (..., A), as the actor put them out: not clipped, not scaled.
        advantages: (...), constants.
    """
    distribution = actor(observations)
    entropy = distribution.entropy().mean()
    return -(distribution.log_prob(actions) * advantages).mean() - ent_coef * entropy, entropy


def collect(envs: VectorEnv, observations: np.ndarray, learner: A2C, run: Run) -> tuple[Batch, np.ndarray]:
    """Play `sample_size` timesteps with the policy as it is.

    Args:
        observations: what the environments show now, (N, D), not normalised.

    Returns:
        The batch, and what the environments show after it.
    """
    config, transitions = learner.config, []
    for _ in range(config.sample_size // config.num_envs):
        if config.obs_norm:
            learner.obs_normalizer.update(observations)
        normalized = learner.obs_normalizer(observations)
        actions = learner.act(normalized)
        next_observations, rewards, terminated, truncated, _ = envs.step(learner.action_map(actions))
        done = terminated | truncated
        run.log_rewards(rewards, done)  # the environment's own, before anything is done to them
        run.check_finite("an observation", next_observations)
        run.check_finite("a reward", rewards)
        if learner.potential:
            rewards = rewards + environments.shaping_reward(
                learner.potential, observations, next_observations, terminated, config.gamma
            )
        next_normalized = learner.obs_normalizer(next_observations)
        transitions.append((normalized, actions, rewards, next_normalized, terminated, truncated))
        observations = next_observations
        if done.any():
            observations, _ = envs.reset(options={"reset_mask": done})
    batch = Batch(*map(np.stack, zip(*transitions, strict=True)))
    if config.reward_norm:
        batch = batch._replace(rewards=learner.reward_normalizer(batch.rewards, batch.terminated | batch.truncated))
    return batch, observations


def train(config: Config, env_fn: EnvFn | None = None) -> Run:
    """Train a policy, and return the finished run, with the policy in `run.policy`.

    Args:
        config: the settings.
        env_fn: makes the environment, for one that is not registered; `config.env` is then only its name.

    Raises:
        UsageError: settings that cannot be, before anything is written.
        TrainingError: a number that is not finite, or an environment that raised.
    """
    config.validate()
    torch.manual_seed(config.seed)
    envs = environments.make_vector_env(config.env, config.num_envs, env_fn)
    action_map = ActionMap(envs.single_action_space)
    learner = A2C(config, spaces.flatdim(envs.single_observation_space), action_map)
    with Run(config, learner.parts) as run:
        run.policy = runs.Policy(learner.actor, learner.obs_normalizer, action_map)
        observations = environments.reset_all(envs, run.env_seed)
        while run.unfinished:
            lr_scale = 1.0 - run.progress
            batch, observations = collect(envs, observations, learner, run)
            run.log_update(learner.update(batch, lr_scale))
            del batch  # the actor has changed: these are no longer its transitions
            if run.save_due:
                run.save()
    envs.close()
    return run


if __name__ == "__main__":
    runs.main(Config, train)
