"""Advantage actor-critic (A2C), epoch update: collect `sample_size` transitions, update once, throw the batch away.

    python a2c_algorithm_epoch_update.py --env Pendulum-v0

Read `train` first: it is the whole algorithm, and what it calls stands above it. Sources: Mnih et al. 2016 (arXiv
1602.01783) for A2C, Schulman et al. 2016 (arXiv 1506.02438) for the advantages.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.distributions import Independent

import environments
import runs
from distributed import ALONE, Ranks
from environments import ActionMap, EnvFn
from networks import Critic, FlatNetwork
from runs import Callback, Run
from utils import AdvantageNormalizer, ObservationNormalizer, RewardNormalizer, explained_variance, gae, hold, to_tensor


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
    actor_lr: float = 3e-3
    """Learning rate of the actor; it falls linearly to 0 over the run, as the critic's does."""
    critic_lr: float = 2.35e-3
    """Learning rate of the critic."""
    critic_updates: int = 10
    """Gradient steps of the critic on each batch; the actor always takes one."""
    ent_coef: float = 0.01
    """Weight of the entropy bonus in the actor's loss."""
    noise_hold: float = 0.5
    """For choices among actions: probability that a step has the noise of the step before; falls linearly to 0."""
    max_grad_norm: float = 0.5
    """Norm to which gradients are clipped, the actor's and the critic's each."""
    max_step: float = math.inf
    """Length to which optimiser steps are cut: root mean square over the parameters, in learning rates."""
    center_advantages: bool = True
    """Take each batch's mean advantage away. In a small batch that is most of what it has to say."""
    obs_norm: bool = True
    """Normalise observations by their running mean and deviation."""
    reward_norm: bool = True
    """Divide rewards by the running deviation of the discounted return."""
    vector_backend: Literal["sync", "envpool"] = "sync"
    """What steps the environments: sync, one after the other, or envpool (if installed), in C++ on all cores."""
    compile: bool = True
    """Compile acting and updating with torch.compile where the run is long enough to win the time back."""

    def validate(self) -> None:
        super().validate()
        for name in ("num_envs", "sample_size", "critic_updates", "actor_lr", "critic_lr", "max_grad_norm", "max_step"):
            runs.check(self, name, getattr(self, name) > 0, "must be greater than 0")
        for name in ("gamma", "gae_lambda", "noise_hold"):
            runs.check(self, name, 0 <= getattr(self, name) <= 1, "must be between 0 and 1")
        runs.check(self, "ent_coef", self.ent_coef >= 0, "must not be negative")
        whole = self.sample_size % self.num_envs == 0
        runs.check(self, "sample_size", whole, f"must be a multiple of --num-envs {self.num_envs}")


MEMORY = 51_200
"""Timesteps over which the optimisers' mean of squares fades, whatever the batch: of 512, by 0.99 an update."""
COMPILE_PAYS_FROM = 500_000
"""Timesteps after which compiling, which takes some 20 s, has won them back."""


class Batch(NamedTuple):
    """Transitions of T steps in N environments, in the order in which they happened."""

    observations: Tensor
    """s, not normalised, (T, N, D)."""
    actions: Tensor
    """a, as the actor put it out, (T, N, A)."""
    rewards: Tensor
    """r, shaped, not normalised, (T, N)."""
    next_observations: Tensor
    """s', not normalised, (T, N, D): at an episode's end its last observation, not the first of the next."""
    terminated: Tensor
    """1 where the task ended at s', else 0, (T, N)."""
    truncated: Tensor
    """1 where the episode was cut at s', else 0, (T, N)."""


class RMSprop(nn.Module):
    """Gradient descent scaled by the running mean of squares (Hinton 2012), of a gradient clipped to a norm.

    The mean is corrected for its start at zero, as Adam's is (Kingma and Ba 2015, arXiv 1412.6980); without that, the
    first step is ten times as long as the learning rate means it to be, and throws some runs off for good. So this is
    what torch.optim.Adam with betas (0, alpha) does after torch.nn.utils.clip_grad_norm_, in operations on one vector.

    After a calm, in which the mean of squares has faded, a step could be many learning rates long and throw away in one
    what was learned: steps longer than `max_step` are cut (Shazeer and Stern 2018, arXiv 1804.04235, section 6).

    Args:
        theta: the parameters, (P,).
        lr: learning rate.
        max_grad_norm: norm to which gradients are clipped.
        max_step: root mean square over the parameters to which steps are cut, in learning rates.
        alpha: decay of the mean of squares.
    """

    square: Tensor
    updates: Tensor
    eps = 1e-8

    def __init__(self, theta: Tensor, lr: float, max_grad_norm: float, max_step: float, alpha: float) -> None:
        super().__init__()
        self.theta = theta
        self.lr = lr
        self.max_grad_norm = max_grad_norm
        self.max_step = max_step
        self.alpha = alpha
        self.register_buffer("square", torch.zeros_like(theta))
        self.register_buffer("updates", theta.new_zeros(1))

    def step(self, gradient: Tensor, lr_scale: Tensor) -> Tensor:
        """Descend along a gradient, (P,); returns its norm before it was clipped, ()."""
        norm = gradient.norm()
        gradient = gradient * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        self.updates.add_(1)
        self.square.lerp_(gradient.square(), 1 - self.alpha)
        mean_square = self.square / (1 - self.alpha**self.updates)
        step = self.lr * lr_scale * gradient / (mean_square.sqrt() + self.eps)
        if self.max_step < math.inf:
            length = step.square().mean().sqrt() / (self.lr * lr_scale)
            step = step * (self.max_step / (length + 1e-6)).clamp(max=1.0)
        self.theta.sub_(step)
        return norm


class A2C:
    """What is learned: actor, critic, their optimisers and the running statistics."""

    def __init__(self, config: Config, observation_size: int, action_map: ActionMap, ranks: Ranks = ALONE) -> None:
        self.config = config
        self.ranks = ranks
        self.action_map = action_map.to(config.device)
        actor = runs.make_actor(config, observation_size, action_map)
        self.actor, self.sample, self.noise = FlatNetwork(actor), actor.sample, actor.noise
        # V = 0 everywhere is hope, where rewards are negative: what was never tried looks better than what was.
        critic = Critic(observation_size, config.hidden, last_gain=0.0)
        self.critic = FlatNetwork(critic.to(config.device))
        limits = (config.max_grad_norm, config.max_step, max(0.0, 1 - config.sample_size / MEMORY))
        self.actor_optimizer = RMSprop(self.actor.theta, config.actor_lr, *limits)
        self.critic_optimizer = RMSprop(self.critic.theta, config.critic_lr, *limits)
        self.obs_normalizer = ObservationNormalizer(observation_size, ranks).to(config.device)
        self.reward_normalizer = RewardNormalizer(config.num_envs, config.gamma, ranks).to(config.device)
        self.advantage_normalizer = AdvantageNormalizer(config.center_advantages, ranks).to(config.device)
        self.parts = {
            "actor": self.actor.network,
            "critic": self.critic.network,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "obs_normalizer": self.obs_normalizer,
            "reward_normalizer": self.reward_normalizer,
            "advantage_normalizer": self.advantage_normalizer,
        }
        self.potential = environments.load_potential(config.reward_shaping, config.env)
        if config.compile and config.total_timesteps >= COMPILE_PAYS_FROM:
            runs.compile_methods(self, "act", "update_actor", "update_critic")

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample actions for observations (N, D): as the actor puts them out, (N, A), and as environments take them."""
        actions = self.sample(self.actor(self.obs_normalizer(observations)), noise)
        return actions, self.action_map(actions)

    def update(self, batch: Batch, lr_scale: float) -> dict[str, float]:
        """Learn from a batch: one gradient step of the actor, `critic_updates` of the critic.

        The actor's gradient is that of the policy which collected the batch: it may take one step with it. The critic
        regresses on targets that stay what they are: it may take many.

        Args:
            batch: collected with the actor as it is now, and of no use once the actor has changed.
            lr_scale: share of the learning rates to use.

        Returns:
            The metrics of `runs.METRICS`.
        """
        scale = to_tensor(lr_scale, self.config.device)
        states, returns, actor_numbers = self.update_actor(batch, scale)
        critic_numbers = [self.update_critic(states, returns, scale) for _ in range(self.config.critic_updates)]
        numbers = self.ranks.average(torch.cat((actor_numbers, critic_numbers[0]))).tolist()
        names = ("policy_loss", "entropy", "explained_variance", "actor_grad_norm", "value_loss", "critic_grad_norm")
        return dict(zip(names, numbers, strict=True))

    @torch.no_grad()
    def update_actor(self, batch: Batch, lr_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One gradient step down `policy_loss`, with the advantages that the critic sees in a batch.

        Returns:
            The normalised states (T, N, D) and the critic's targets there (T, N), and four numbers: the loss, the mean
            entropy, the critic's explained variance and the gradient's norm, (4,).
        """
        config = self.config
        # All by the statistics that the policy acted by: the critic must see s' as it sees it again as s.
        states, next_states = self.obs_normalizer(batch.observations), self.obs_normalizer(batch.next_observations)
        rewards = batch.rewards
        if config.reward_norm:
            rewards = self.reward_normalizer(rewards, torch.maximum(batch.terminated, batch.truncated))
        values, next_values = self.critic(states), self.critic(next_states)
        advantages, returns = gae(
            rewards, values, next_values, batch.terminated, batch.truncated, config.gamma, config.gae_lambda
        )
        normalized = self.advantage_normalizer(advantages)
        gradient, (loss, entropy) = self.actor.gradient(
            lambda policy: policy_loss(policy, batch.actions, normalized, config.ent_coef), states
        )
        norm = self.actor_optimizer.step(self.ranks.average(gradient), lr_scale)
        if config.obs_norm:
            self.obs_normalizer.update(batch.observations.flatten(0, 1))
        return states, returns, torch.stack((loss, entropy, explained_variance(values, returns), norm))

    @torch.no_grad()
    def update_critic(self, states: Tensor, returns: Tensor, lr_scale: Tensor) -> Tensor:
        """One gradient step down mean((V(s) - return)^2); returns this loss and the gradient's norm, (2,)."""
        gradient, (loss,) = self.critic.gradient(lambda values: ((values - returns).square().mean(),), states)
        return torch.stack((loss, self.critic_optimizer.step(self.ranks.average(gradient), lr_scale)))


def policy_loss(policy: Independent, actions: Tensor, advantages: Tensor, ent_coef: float) -> tuple[Tensor, Tensor]:
    """-mean(log pi(a|s) * A) - ent_coef * entropy, whose gradient is minus the policy gradient, and the mean entropy.

    log pi(a|s) is computed anew from the stored states and actions. Log-probabilities kept from the collection, where
    no graph was recorded, would be constants, and the loss without a gradient.

    Args:
        policy: the actor's distribution in the states of the batch, as they were when the actions were taken.
        actions: (..., A), as the actor put them out: not clipped, not scaled.
        advantages: (...), constants.
    """
    entropy = policy.entropy().mean()
    return -(policy.log_prob(actions) * advantages).mean() - ent_coef * entropy, entropy


def collect(envs: VectorEnv, observations: np.ndarray, learner: A2C, run: Run) -> tuple[Batch, np.ndarray]:
    """Play `sample_size` timesteps with the policy as it is.

    Args:
        observations: what the environments show now, (N, D), not normalised.

    Returns:
        The batch, and what the environments show after it.
    """
    config, seen, acted, outcomes = learner.config, [], [], []
    noise = learner.noise(config.sample_size // config.num_envs, config.num_envs)  # of all ranks' environments
    if not learner.action_map.continuous:
        noise = hold(noise, config.noise_hold * (1.0 - run.progress))
    for step_noise in noise[:, learner.ranks.share(config.num_envs)].unbind():
        actions, env_actions = learner.act(to_tensor(observations, config.device), step_noise)
        next_observations, rewards, terminated, truncated, _ = envs.step(env_actions.cpu().numpy())
        run.count(config.num_envs)
        seen.append(observations)
        acted.append(actions)
        outcomes.append((next_observations, rewards, terminated, truncated))
        observations, done = next_observations, terminated | truncated
        if done.any():
            observations, _ = envs.reset(options={"reset_mask": done})
    reached, rewards, terminated, truncated = map(np.array, zip(*outcomes, strict=True))
    run.check_steps("an observation", reached)
    run.check_steps("a reward", rewards)
    run.log_rewards(rewards, terminated | truncated)  # the environment's own, before anything is done to them
    if learner.potential:
        rewards = rewards + environments.shaping_reward(
            learner.potential, np.array(seen), reached, terminated, config.gamma
        )
    arrays = (to_tensor(array, config.device) for array in (rewards, reached, terminated, truncated))
    return Batch(to_tensor(seen, config.device), torch.stack(acted), *arrays), observations


def train(config: Config, env_fn: EnvFn | None = None, callback: Callback | None = None) -> Run:
    """Train a policy, and return the finished run, with the policy in `run.policy`.

    Args:
        config: the settings.
        env_fn: makes the environment, for one that is not registered; `config.env` is then only its name.
        callback: called with the run and the numbers that go to TensorBoard, about every 1,000 timesteps.

    Raises:
        UsageError: settings that cannot be, before anything is written.
        TrainingError: a number that is not finite, or an environment or the callback that raised.
    """
    config.validate()
    ranks = Ranks.started(config.device)
    runs.check(config, "num_envs", config.num_envs % ranks.size == 0, f"must be a multiple of the {ranks.size} ranks")
    torch.manual_seed(config.seed)
    envs = environments.make_vector_env(config.env, config.num_envs // ranks.size, env_fn, config.vector_backend)
    action_map = ActionMap(envs.single_action_space)
    learner = A2C(config, spaces.flatdim(envs.single_observation_space), action_map, ranks)
    with Run(config, learner.parts, envs, callback, ranks) as run:
        run.policy = runs.Policy(learner.actor.network, learner.obs_normalizer, action_map)
        (observations,) = run.resumed or (environments.reset_all(envs, run.env_seed, ranks.rank * envs.num_envs),)
        while run.unfinished:
            lr_scale = 1.0 - run.progress
            batch, observations = collect(envs, observations, learner, run)
            run.log_update(learner.update(batch, lr_scale))
            del batch  # the actor has changed: these are no longer its transitions
            if run.save_due:
                run.save(observations)
    envs.close()
    return run


if __name__ == "__main__":
    runs.main(Config, train)
