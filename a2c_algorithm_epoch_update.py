"""Advantage actor-critic (A2C), epoch update: collect `sample_size` transitions, learn from them, discard them.

    python a2c_algorithm_epoch_update.py --env Pendulum-v0

An epoch is one such batch, not a pass over stored data; others call this the rollout update. Read the script from top
to bottom: settings, training, collecting, learner, loss, optimizer. Shapes: T steps, N environments, D entries of an
observation, A of an action, P parameters. A state is a normalized observation, the input of the networks. Sources: Mnih
et al. 2016 (arXiv 1602.01783) for A2C, Schulman et al. 2016 (arXiv 1506.02438) for advantages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.distributions import Independent

import environments
from environments import ActionMap, EnvFn, Shaping, observation_tensor, to_tensor
from networks import Critic, FlatNetwork, ObservationLayout, make_actor
from training import ALONE, Callback, Policy, Ranks, Run, RunSettings, compile_methods, main, prepared, seed_all
from utils import ObservationNormalizer, RewardNormalizer, explained_variance, gae, kl_divergence, repeat_noise


@dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    """Train A2C: collect sample_size transitions in num_envs environments, learn from them, discard them."""

    script: ClassVar[str] = "epoch"

    num_envs: int = 16
    """Environments that are stepped together. More of them make a batch less correlated, and their rollouts shorter."""
    sample_size: int = 128
    """Transitions in a batch: num_envs times the steps of each. A larger batch is less noisy, but updates are fewer."""
    gamma: float = 0.995
    """Discount factor per timestep. Raise it if rewards are delayed."""
    gae_lambda: float = 0.9
    """Lambda of generalized advantage estimation (GAE). 0: the TD error, less noisy; 1: all rewards of the rollout,
    less biased."""
    actor_lr: float = 3e-4
    """Learning rate of the actor. The script multiplies it by the square root of sample_size, and anneals it linearly
    to 0 over the run. Lower it if returns collapse."""
    critic_lr: float = 5e-5
    """Learning rate of the critic, multiplied and annealed in the same way."""
    critic_updates: int | None = None
    """Gradient steps of the critic per batch; the actor takes one. None: 10, with images 1. Raise it if
    explained_variance stays low."""
    max_kl: float = 0.01
    """About the most that an update changes the policy: the mean KL divergence over the states of its batch. Larger
    steps of the actor are shortened. Lower it if returns collapse."""
    ent_coef: float | None = None
    """Coefficient of the entropy bonus in the actor's loss. None: 0, with images 0.01. Raise it if the policy stops
    exploring too early."""
    repeat_noise: float = 0.9
    """Probability of reusing the previous step's sampling noise within a batch, since exploring often takes many
    similar actions in a row; for actions of A entries, its A-th power. It is annealed quadratically to 0. 0 samples all
    actions independently."""
    obs_norm: bool = True
    """Normalize observations by their running mean and standard deviation."""
    reward_norm: bool = True
    """Divide rewards by the running standard deviation of their discounted sum, and clip them to [-10, 10]."""
    vector_backend: Literal["sync", "async", "envpool"] = "sync"
    """How environments are stepped: sync, one after the other; async, in a process each, faster if a step takes
    milliseconds; envpool (if installed), in C++ on all cores."""
    compile: bool = True
    """Use torch.compile, in runs of at least 100,000 timesteps. Turn off to debug."""

    def validate(self) -> None:
        """Raise a `UsageError` for the first invalid setting."""
        super().validate()
        for name in ("num_envs", "sample_size", "critic_updates", "actor_lr", "critic_lr", "max_kl"):
            value = getattr(self, name)
            self.check(name, value is None or value > 0, "must be greater than 0")
        for name in ("gamma", "gae_lambda", "repeat_noise"):
            self.check(name, 0 <= getattr(self, name) <= 1, "must be between 0 and 1")
        self.check("ent_coef", 0 <= (self.ent_coef or 0) < float("inf"), "must be finite and not negative")
        self.check("sample_size", self.sample_size > 1, "must be at least 2: advantages are centered by their median")
        divides = self.sample_size % self.num_envs == 0
        self.check("sample_size", divides, f"must be a multiple of --num-envs {self.num_envs}")


MEAN_SQUARE_HORIZON = 51_200
"""Timesteps over which RMSprop averages squared gradients of the actor; with k steps a batch, of the critic a k-th."""
COMPILE_FROM = 100_000
"""Timesteps of the shortest run that is compiled: half a minute at first; later runs load the code in 2 s."""


@prepared
def train(config: Config, env_fn: EnvFn | None = None, callback: Callback | None = None) -> Run:
    """Train a policy; returns the finished run, with the policy in `run.policy`.

    Args:
        config: the settings.
        env_fn: makes the environment from `config.env_kwargs`, if it is not registered; `config.env` is then its name.
        callback: called with the run and the values logged to TensorBoard, about every 1,000 timesteps.

    Raises:
        UsageError: invalid settings, before anything is written.
        TrainingError: a value that is not finite, or an exception in the environment.
    """
    ranks = Ranks.started(config.device)
    num_envs = ranks.divide("--num-envs", config.num_envs)
    shaping = environments.load_shaping(config.reward_shaping, config.env, config.gamma)
    seed_all(config.seed, ranks.rank)
    envs = environments.make_vector_env(
        config.env, num_envs, env_fn, config.env_kwargs, config.vector_backend, config.frame_stack
    )
    action_map, observation_map = environments.make_maps(envs)
    torch.manual_seed(config.seed)  # again: an environment may have drawn from the global generator, or seeded it
    learner = A2C(config, observation_map.layout, action_map, ranks)
    with Run(config, learner.parts, envs, env_fn, callback, ranks) as run:
        run.policy = Policy(learner.actor.network, learner.obs_normalizer, action_map, observation_map)
        if run.resumed:
            observations = run.resumed["observations"]
        else:
            observations = environments.reset_all(envs, run.env_seed, first=ranks.rank * num_envs)
        while run.unfinished:
            lr_scale = 1.0 - run.progress
            batch, observations = collect(envs, observations, learner, run, shaping)
            run.log_update(learner.update(batch, lr_scale))
            del batch  # the policy has changed: these transitions are off-policy now
            if run.save_due:
                run.save(observations=observations)
    return run


class Batch(NamedTuple):
    """Transitions of T steps in N environments, in the order in which they happened."""

    observations: Tensor
    """s, not normalized, (T, N, D)."""
    actions: Tensor
    """a, as sampled, before `ActionMap` scales and clips it, (T, N, A)."""
    rewards: Tensor
    """r, shaped if --reward-shaping is on, not normalized, (T, N)."""
    next_observations: Tensor
    """s', not normalized, (T, N, D); at the end of an episode its final observation, not the first of the next one."""
    terminated: Tensor
    """1 where the episode terminated at s', else 0, (T, N)."""
    truncated: Tensor
    """1 where the episode was truncated at s', else 0, (T, N)."""


def collect(
    envs: VectorEnv, observations: np.ndarray, learner: A2C, run: Run, shaping: Shaping | None = None
) -> tuple[Batch, np.ndarray]:
    """Step the environments for `sample_size` timesteps; returns the batch, and the observations after it.

    Args:
        observations: the current observations of the environments, (N, D), not normalized.
        shaping: from the rewards to those to learn from, see `environments.load_shaping`.
    """
    config, all_observations, all_actions, outcomes = learner.config, [], [], []
    # All ranks draw the same noise, for all environments, and use their slice of it.
    steps, generator = config.sample_size // config.num_envs, run.generator
    noise = learner.actor.network.noise(steps, config.num_envs, generator=generator)
    probability = config.repeat_noise**learner.action_map.size * (1.0 - run.progress) ** 2
    noise = repeat_noise(noise, probability, generator)
    for step_noise in noise[:, learner.ranks.local_slice(config.num_envs)].unbind():
        actions, env_actions = learner.act(observation_tensor(observations, config.device), step_noise)
        next_observations, rewards, terminated, truncated, _ = envs.step(env_actions.cpu().numpy())
        run.count(config.num_envs)
        all_observations.append(observations)
        all_actions.append(actions)
        outcomes.append((next_observations, rewards, terminated, truncated))
        observations, done = next_observations, terminated | truncated
        if done.any():  # vector environments do not reset by themselves here
            observations, _ = envs.reset(options={"reset_mask": done})
    next_observations, rewards, terminated, truncated = map(np.array, zip(*outcomes, strict=True))
    run.check_steps("an observation", next_observations)
    run.check_steps("a reward", rewards)
    run.log_rewards(rewards, terminated | truncated)  # the environment's own rewards, before shaping
    if shaping:
        rewards = shaping(rewards, np.array(all_observations), next_observations, terminated)
    batch = Batch(
        observations=observation_tensor(all_observations, config.device),
        actions=torch.stack(all_actions),
        rewards=to_tensor(rewards, config.device),
        next_observations=observation_tensor(next_observations, config.device),
        terminated=to_tensor(terminated, config.device),
        truncated=to_tensor(truncated, config.device),
    )
    return batch, observations


class A2C:
    """The learner: actor, critic, their optimizers and the running statistics.

    Args:
        layout: of the observations.
        action_map: from sampled actions to those of the environment.
        ranks: the processes that train together; each has an equal part of every batch.
    """

    def __init__(self, config: Config, layout: ObservationLayout, action_map: ActionMap, ranks: Ranks = ALONE) -> None:
        self.config, self.ranks = config, ranks
        # On MinAtar/Breakout-v0, ten steps of the critic took most of the time and gained nothing (one seed).
        self.critic_updates = config.critic_updates or (1 if layout.images else 10)
        self.ent_coef = (0.01 if layout.images else 0.0) if config.ent_coef is None else config.ent_coef
        self.action_map = action_map.to(config.device)
        actor = make_actor(layout, action_map.nvec, action_map.bounded, config)
        # The critic starts at V(s) = 0: optimistic where rewards are negative, which encourages exploration.
        critic = Critic(layout, config, last_gain=0.0)
        self.actor, self.critic = FlatNetwork(actor.to(config.device)), FlatNetwork(critic.to(config.device))
        alpha = max(0.0, 1 - config.sample_size / MEAN_SQUARE_HORIZON)
        # The noise of a batch's gradient falls with the square root of its size; steps grow by the same factor.
        scale = config.sample_size**0.5
        self.actor_optimizer = RMSprop(self.actor.theta, lr=config.actor_lr * scale, alpha=alpha)
        self.critic_optimizer = RMSprop(self.critic.theta, lr=config.critic_lr * scale, alpha=alpha)
        self.obs_normalizer = ObservationNormalizer(layout.size, ranks, layout.unchanged).to(config.device)
        self.reward_normalizer = RewardNormalizer(config.num_envs, config.gamma, ranks).to(config.device)
        self.parts = {  # what a checkpoint saves
            "actor": self.actor.network,
            "critic": self.critic.network,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "obs_normalizer": self.obs_normalizer,
            "reward_normalizer": self.reward_normalizer,
        }
        if config.compile and config.total_timesteps >= COMPILE_FROM:
            compile_methods(self, config, "act", "update_actor", "update_critic")

    @torch.no_grad()
    def act(self, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample actions for observations (N, D); returns them, (N, A), and as the environments take them."""
        pi = self.actor(self.obs_normalizer.normalize(observations))
        actions = self.actor.network.sample(pi, noise)
        return actions, self.action_map(actions)

    def update(self, batch: Batch, lr_scale: float) -> dict[str, float]:
        """Learn from a batch: one gradient step of the actor, `critic_updates` of the critic; returns metrics by name.

        The policy gradient holds only for the policy that collected the batch, so the actor takes one step. The
        critic's targets are fixed numbers, which it regresses on, so it can take several. `lr_scale`, in (0, 1], is a
        factor of both learning rates.
        """
        scale = to_tensor(lr_scale, self.config.device)  # a number would be compiled anew for every value
        states, returns, actor_metrics = self.update_actor(batch, scale)
        critic_metrics = [self.update_critic(states, returns, scale) for _ in range(self.critic_updates)]
        metrics = actor_metrics | critic_metrics[0]  # the loss before the critic has fitted this batch
        values = self.ranks.all_reduce_mean(torch.stack(list(metrics.values()))).tolist()
        return dict(zip(metrics, values, strict=True))

    def update_actor(self, batch: Batch, lr_scale: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compute advantages and critic targets, and take one gradient step on `policy_loss`, shortened to `max_kl`.

        Returns the states (T, N, D), the critic's targets (T, N), and metrics by name, () each.
        """
        config = self.config
        with torch.no_grad():  # advantages and targets are constants: no gradient flows through them
            # Observations: by the statistics used while collecting, updated below. Rewards: with those of this batch.
            states = self.obs_normalizer.normalize(batch.observations)
            next_states = self.obs_normalizer.normalize(batch.next_observations)
            rewards, done = batch.rewards, torch.maximum(batch.terminated, batch.truncated)
            if config.reward_norm:
                self.reward_normalizer.update_returns(rewards, done)
                rewards = self.reward_normalizer.normalize(rewards)
            values, next_values = self.critic(states), self.critic(next_states)
            advantages, returns = gae(
                rewards, values, next_values, batch.terminated, batch.truncated, config.gamma, config.gae_lambda
            )
            # An error of the critic that all transitions share shifts their median. A few large advantages hardly do,
            # but they shift the mean: after a crash in one environment, centering by it would reinforce all others.
            # Advantages are not divided by their standard deviation: where it is small, that would amplify noise.
            advantages = advantages - self.ranks.all_gather(advantages.flatten()).median()
        pi = self.actor(states)
        loss, entropy = policy_loss(pi, batch.actions, advantages, self.ent_coef)
        (gradient,) = torch.autograd.grad(loss, self.actor.theta)
        theta = self.actor.theta.detach().clone()
        grad_norm = self.actor_optimizer.step(self.ranks.all_reduce_mean(gradient), lr_scale)
        with torch.no_grad():
            # How far a step moves the policy differs between environments and in the course of a run. The divergence is
            # about quadratic in the step (Schulman et al. 2015, arXiv 1502.05477, appendix C). NaN undoes the step.
            kl = self.ranks.all_reduce_mean(kl_divergence(pi, self.actor(states)).mean()).nan_to_num(nan=torch.inf)
            self.actor.theta.lerp_(theta, 1 - (config.max_kl / kl).sqrt().clamp(max=1.0))
        if config.obs_norm:
            self.obs_normalizer.update(batch.observations.flatten(0, 1))
        metrics = {"policy_loss": loss.detach(), "entropy": entropy.detach(), "actor_grad_norm": grad_norm}
        return states, returns, metrics | {"explained_variance": explained_variance(values, returns)}

    def update_critic(self, states: Tensor, returns: Tensor, lr_scale: Tensor) -> dict[str, Tensor]:
        """Take one gradient step on mean((V(s) - return)^2) for states (T, N, D) and returns (T, N)."""
        loss = (self.critic(states) - returns).square().mean()
        (gradient,) = torch.autograd.grad(loss, self.critic.theta)
        grad_norm = self.critic_optimizer.step(self.ranks.all_reduce_mean(gradient), lr_scale)
        return {"value_loss": loss.detach(), "critic_grad_norm": grad_norm}


def policy_loss(pi: Independent, actions: Tensor, advantages: Tensor, ent_coef: float) -> tuple[Tensor, Tensor]:
    """The loss -mean(log pi(a|s) * A) - ent_coef * entropy, and the mean entropy, both ().

    Descending the loss follows the policy gradient and raises the entropy. log pi(a|s) is computed from the stored
    states and actions, with its graph. Log-probabilities stored while collecting, where no graph is recorded, would be
    constants, and the advantages would not change the policy.

    Args:
        pi: the actor's distribution pi(.|s) in the states of the batch, batch shape (...), event shape (A,).
        actions: (..., A), as sampled, before `ActionMap` scales and clips them.
        advantages: (...), constants.
    """
    entropy = pi.entropy().mean()
    return -(pi.log_prob(actions) * advantages).mean() - ent_coef * entropy, entropy


class RMSprop(nn.Module):
    """RMSprop (Hinton 2012) with bias correction and update clipping.

        count  <- alpha * count + 1
        square <- square + (g^2 - square) / count                                   g: the gradient
        step   <- g / (sqrt(square) + eps)
        theta  <- theta - lr * step / max(1, RMS(step))

    Without the clipping, this is torch.optim.Adam with betas (0, alpha) (Kingma and Ba 2015, arXiv 1412.6980), whose
    bias correction makes the square the weighted mean of all g^2 so far; count is the sum of their weights alpha^k.
    While gradients are small, the mean decays; then the next large one would cause a step of many learning rates, which
    is clipped (Shazeer and Stern 2018, arXiv 1804.04235, section 6).

    Args:
        theta: the parameters, (P,).
        lr: learning rate.
        alpha: decay of the mean of squares, per update.
    """

    square: Tensor
    count: Tensor
    eps = 1e-8

    def __init__(self, theta: Tensor, *, lr: float, alpha: float) -> None:
        super().__init__()
        self.theta, self.lr, self.alpha = theta, lr, alpha
        self.register_buffer("square", torch.zeros_like(theta))
        self.register_buffer("count", theta.new_zeros(1))

    @torch.no_grad()
    def step(self, gradient: Tensor, lr_scale: Tensor) -> Tensor:
        """Take a step against the gradient, (P,), with `lr_scale` times the learning rate; returns its norm."""
        self.count.mul_(self.alpha).add_(1)
        self.square.lerp_(gradient.square(), 1 / self.count)
        step = gradient / (self.square.sqrt() + self.eps)
        self.theta.sub_(self.lr * lr_scale * step / step.square().mean().sqrt().clamp(min=1.0))
        return gradient.norm()


if __name__ == "__main__":
    main(Config, train)
