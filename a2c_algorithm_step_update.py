"""Advantage actor-critic (A2C), step update: update after every transition, then discard it.

    python a2c_algorithm_step_update.py --env Pendulum-v0

Read it from top to bottom: settings, training, learner, optimizer. Shapes: D entries of an observation, A of an action,
P parameters. A state is a normalized observation, the input of the networks. Sources: Sutton and Barto 2018, section
13.5, without its factor gamma^t; Elsayed et al. 2024 (arXiv 2410.14606) for what makes it work with networks.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import environments
from environments import ActionMap, EnvFn, observation_tensor, to_tensor
from networks import Critic, FlatNetwork, ObservationLayout, make_actor
from training import Callback, Policy, Run, RunSettings, compile_methods, main, prepared, seed_all
from utils import ObservationNormalizer, RewardNormalizer, explained_variance


@dataclass(frozen=True, kw_only=True)
class Config(RunSettings):
    """Train A2C: update actor and critic after every env.step, and discard the transition."""

    script: ClassVar[str] = "step"
    smallest_initial_std: ClassVar[float] = 1.0
    """Of continuous actions, for any number of entries: with 0.4, one run of Humanoid-v4 (17) did not learn to walk."""

    gamma: float = 0.995
    """Discount factor per timestep. Raise it if rewards are delayed."""
    trace_lambda: float = 0.85
    """Lambda of the eligibility traces, which decay by gamma * lambda per timestep. 0: the one-step TD update."""
    actor_lr: float = 3e-4
    """Learning rate of the actor. Lower it if returns collapse."""
    critic_lr: float = 3e-4
    """Learning rate of the critic."""
    anneal_lr: bool = True
    """Anneal the learning rates linearly to 0 over the run. Turn off if you want to extend the run with --resume."""
    ent_coef: float = 0.0
    """Coefficient of the entropy bonus, weighted by the absolute TD error. Raise it if exploration stops too early."""
    repeat_noise: float = 0.9
    """Probability of reusing the previous step's sampling noise, since exploring often takes many similar actions in a
    row; for actions of A entries, its A-th power. It falls to 0 with the fourth power of the time left. 0 samples all
    actions independently."""
    obs_norm: bool = True
    """Normalize observations by their running mean and standard deviation."""
    reward_norm: bool = True
    """Divide rewards by the running standard deviation of their discounted sum, and clip them to [-10, 10]."""
    textbook: bool = False
    """For comparison, RMSprop alone: --trace-lambda 0, --repeat-noise 0, --mean-limit 0, --no-anneal-lr,
    --no-layer-norm, --no-obs-norm and --no-reward-norm."""
    compile: bool = True
    """Use torch.compile, in runs of at least 20,000 timesteps. Turn off to debug."""

    def validate(self) -> None:
        """Raise a `UsageError` for the first invalid setting."""
        super().validate()
        for name in ("actor_lr", "critic_lr"):
            self.check(name, getattr(self, name) > 0, "must be greater than 0")
        for name in ("gamma", "trace_lambda", "repeat_noise"):
            self.check(name, 0 <= getattr(self, name) <= 1, "must be between 0 and 1")
        self.check("ent_coef", 0 <= self.ent_coef < float("inf"), "must be finite and not negative")
        if self.textbook:
            for name, value in TEXTBOOK.items():
                fits = getattr(self, name) in (value, getattr(Config, name))
                self.check(name, fits, "cannot be combined with --textbook; remove one of them")


TEXTBOOK: dict[str, Any] = {
    "trace_lambda": 0.0,
    "anneal_lr": False,
    "repeat_noise": 0.0,
    "layer_norm": False,
    "obs_norm": False,
    "reward_norm": False,
    "mean_limit": 0.0,
}
"""Settings that `--textbook` makes."""

COMPILE_FROM = 20_000
"""Timesteps of the shortest run that is compiled: half a minute at first; later runs load the code in 2 s."""


@dataclass
class Loop:
    """The variables of the training loop, which a checkpoint saves."""

    observation: Any = None  # s, not normalized, (D,)
    state: Any = None  # s, normalized, (D,)
    action: Any = None  # a, as sampled in s, before `ActionMap` scales and clips it, (A,)
    env_action: Any = None  # a, as the environment takes it
    noise: Any = None  # from which it was sampled, see `Actor.noise`
    done: bool = True  # whether the next step must reset the environment
    episode_return: float = 0.0  # sum of the environment's own rewards in this episode
    length: int = 0  # steps of this episode
    log: list[list[float]] = dataclasses.field(default_factory=list)  # `Statistics` since the last row of the log


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
    if config.textbook:
        config = dataclasses.replace(config, **TEXTBOOK)
    shaping = environments.load_shaping(config.reward_shaping, config.env, config.gamma)
    seed_all(config.seed)
    env = environments.make_env(config.env, env_fn, config.env_kwargs, config.frame_stack)
    action_map, observation_map = environments.make_maps(env)
    torch.manual_seed(config.seed)  # again: an environment may have drawn from the global generator, or seeded it
    learner = A2C(config, observation_map.layout, action_map)
    with Run(config, learner.parts, env, env_fn, callback) as run:
        run.policy = Policy(learner.actor.network, learner.obs_normalizer, action_map, observation_map)
        loop = Loop(**run.resumed) if run.resumed else Loop()
        seed = None if run.resumed else run.env_seed  # only the first reset is seeded
        while run.unfinished:
            if loop.done:
                learner.reset_traces()
                loop.observation, _ = env.reset(seed=seed)
                run.check_finite({"an observation": loop.observation})
                loop.state = learner.observe(observation_tensor(loop.observation, config.device))
                loop.noise = learner.actor.network.noise(generator=run.generator)
                loop.action, loop.env_action = learner.act(loop.state, loop.noise)
                loop.episode_return, loop.length, seed = 0.0, 0, None
            lr_scale = 1.0 - run.progress if config.anneal_lr else 1.0
            next_observation, reward, terminated, truncated, _ = env.step(loop.env_action.cpu().numpy()[()])
            run.count(1, reward)
            loop.done = terminated or truncated
            loop.episode_return, loop.length = loop.episode_return + float(reward), loop.length + 1
            if loop.done:  # the environment's own rewards, neither shaped nor scaled
                run.log_episode(loop.episode_return, loop.length)
            if shaping:
                reward = float(shaping(reward, loop.observation, next_observation, terminated))
            outcome = Outcome(reward=reward, terminated=terminated, truncated=truncated, lr_scale=lr_scale)
            inputs = observation_tensor(next_observation, config.device), to_tensor([*outcome], config.device)
            probability = config.repeat_noise**action_map.size * (1.0 - run.progress) ** 4
            if not probability or torch.rand((), generator=run.generator, device=config.device).item() >= probability:
                loop.noise = learner.actor.network.noise(generator=run.generator)
            loop.state, loop.action, loop.env_action, statistics = learner.learn_and_act(
                loop.state, loop.action, *inputs, loop.noise
            )
            loop.observation = next_observation
            loop.log.append(statistics.tolist())
            if not math.isfinite(sum(loop.log[-1])):
                td_error = Statistics(*loop.log[-1]).td_error
                run.check_finite({"an observation": next_observation, "a reward": reward, "the TD error": td_error})
            if run.log_due:
                run.log_update(learner.metrics(Statistics(*np.array(loop.log).T)))
                loop.log.clear()
            if run.save_due:
                run.save(**vars(loop))
    return run


class Outcome(NamedTuple):
    """The scalars of a timestep, as one tensor (4,): one transfer to the device, and no compiling for new values."""

    reward: Any
    terminated: Any
    truncated: Any
    lr_scale: Any


class Statistics(NamedTuple):
    """The statistics of an update, as one tensor (3,): one transfer to the CPU."""

    td_error: Any
    value: Any
    log_prob: Any


class A2C:
    """The learner: actor, critic, their traces and optimizers, and the running statistics.

    Args:
        layout: of the observations.
        action_map: from sampled actions to those of the environment.
    """

    def __init__(self, config: Config, layout: ObservationLayout, action_map: ActionMap) -> None:
        self.config = config
        self.action_map = action_map.to(config.device)
        actor = make_actor(layout, action_map.nvec, action_map.bounded, config)
        self.actor = FlatNetwork(actor.to(config.device))
        self.critic = FlatNetwork(Critic(layout, config).to(config.device))
        decay = config.gamma * config.trace_lambda
        self.actor_optimizer = TraceOptimizer(self.actor.theta, lr=config.actor_lr, decay=decay)
        self.critic_optimizer = TraceOptimizer(self.critic.theta, lr=config.critic_lr, decay=decay)
        self.obs_normalizer = ObservationNormalizer(layout.size, unchanged=layout.unchanged).to(config.device)
        self.reward_normalizer = RewardNormalizer(1, config.gamma).to(config.device)
        self.parts = {  # what a checkpoint saves
            "actor": self.actor.network,
            "critic": self.critic.network,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "obs_normalizer": self.obs_normalizer,
            "reward_normalizer": self.reward_normalizer,
        }
        if config.compile and config.total_timesteps >= COMPILE_FROM:
            compile_methods(self, config, "learn_and_act")

    def observe(self, observation: Tensor) -> Tensor:
        """Update the statistics with a new observation (D,), and return it normalized."""
        if self.config.obs_norm:
            self.obs_normalizer.update(observation[None])
        return self.obs_normalizer.normalize(observation)

    @torch.no_grad()
    def act(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample an action in a state (D,); returns it, (A,), and as the environment takes it."""
        action = self.actor.network.sample(self.actor(state), noise)
        return action, self.action_map(action)

    def learn_and_act(
        self, state: Tensor, action: Tensor, observation: Tensor, outcome: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Learn from a transition, then sample the next action. One function, since compiling one call is fastest.

        Args:
            state, action: s, normalized, (D,), and a, as sampled, (A,).
            observation: s', not normalized, (D,).
            outcome: an `Outcome` as a tensor, (4,).
            noise: for sampling the next action, see `Actor.noise`.

        Returns:
            s', normalized, (D,), the next action, as sampled, (A,), and as the environment takes it (not used at the
            end of an episode), and `Statistics` as a tensor, (3,).
        """
        reward, terminated, truncated, lr_scale = Outcome(*outcome.unbind())
        next_state = self.observe(observation)
        if self.config.reward_norm:
            reward = reward.view(1, 1)
            self.reward_normalizer.update_returns(reward, torch.maximum(terminated, truncated).view(1, 1))
            reward = self.reward_normalizer.normalize(reward).squeeze()
        statistics = self.update(state, action, next_state, reward, terminated, lr_scale)
        return next_state, *self.act(next_state, noise), statistics

    def update(
        self, state: Tensor, action: Tensor, next_state: Tensor, reward: Tensor, terminated: Tensor, lr_scale: Tensor
    ) -> Tensor:
        """Compute the TD error and take one step of critic and actor; returns `Statistics` as a tensor, (3,).

            delta = r + gamma * V(s') * (1 - terminated) - V(s)

        Args:
            state, next_state: s and s', normalized, (D,). s' is never the first state of the next episode.
            action: a, as sampled, (A,).
            reward: r, shaped and normalized, ().
            terminated: 1 if the episode terminated at s', else 0, also where it was only truncated, ().
            lr_scale: factor of both learning rates, in (0, 1], ().
        """
        value = self.critic(state)
        (value_gradient,) = torch.autograd.grad(value, self.critic.theta)
        with torch.no_grad():  # the TD error is a constant: no gradient flows through it
            delta = reward + self.config.gamma * self.critic(next_state) * (1 - terminated) - value
        pi = self.actor(state)
        log_prob = pi.log_prob(action)
        # The step is delta times the trace, so that sign(delta) makes entropy a bonus of weight |delta| now. In later
        # steps, its gradient in the trace is multiplied by their TD errors, of either sign.
        objective = log_prob + self.config.ent_coef * delta.sign() * pi.entropy()
        (policy_gradient,) = torch.autograd.grad(objective, self.actor.theta)
        self.critic_optimizer.step(value_gradient, delta, lr_scale)
        step_scale = 1.0 if self.config.textbook else self.actor.network.step_scale(pi)
        self.actor_optimizer.step(policy_gradient, delta, lr_scale * step_scale)
        return torch.stack(Statistics(td_error=delta, value=value.detach(), log_prob=log_prob.detach()))

    def reset_traces(self) -> None:
        """Set the eligibility traces to zero, at the start of an episode."""
        self.actor_optimizer.trace.zero_()
        self.critic_optimizer.trace.zero_()

    def metrics(self, log: Statistics) -> dict[str, float]:
        """Metrics by name: means over the updates in `log`, (U,) each, and the norms of the last delta * trace."""
        return {
            "policy_loss": float(np.mean(-log.log_prob * log.td_error)),
            "value_loss": float(np.mean(log.td_error**2)),
            "entropy": float(np.mean(-log.log_prob)),  # an estimate: the entropy is the expectation of -log pi
            "explained_variance": explained_variance(*map(torch.tensor, (log.value, log.value + log.td_error))).item(),
            "actor_grad_norm": abs(log.td_error[-1]) * self.actor_optimizer.trace.norm().item(),
            "critic_grad_norm": abs(log.td_error[-1]) * self.critic_optimizer.trace.norm().item(),
        }


class TraceOptimizer(nn.Module):
    """Stochastic gradient ascent along eligibility traces, scaled by the TD error, with the step sizes of RMSprop.

        e      <- gamma * lambda * e + grad f(s)                        f: V(s), or log pi(a|s) with its entropy bonus
        g      <- delta * e
        count  <- beta * count + 1
        square <- square + (g^2 - square) / count
        theta  <- theta + lr * g / (sqrt(square) + eps)

    The trace is a decaying sum of gradients, so that a TD error also corrects earlier states and actions. The rest is
    RMSprop (Hinton 2012) with the bias correction of Adam (Kingma and Ba 2015, arXiv 1412.6980): the square is the
    weighted mean of all g^2 so far, and count is the sum of their weights beta^k. There is no momentum as in Adam: the
    trace already sums gradients over time.

    Args:
        theta: the parameters, (P,).
        lr: learning rate.
        decay: gamma * lambda.
    """

    trace: Tensor
    square: Tensor
    count: Tensor
    beta, eps = 0.999, 1e-8

    def __init__(self, theta: Tensor, *, lr: float, decay: float) -> None:
        super().__init__()
        self.theta, self.lr, self.decay = theta, lr, decay
        self.register_buffer("trace", torch.zeros_like(theta))
        self.register_buffer("square", torch.zeros_like(theta))
        self.register_buffer("count", theta.new_zeros(1))

    @torch.no_grad()
    def step(self, gradient: Tensor, delta: Tensor, lr_scale: Tensor) -> None:
        """Add the gradient of f(s), (P,), to the trace, and take a step along it, scaled by the TD error delta, ()."""
        self.trace.mul_(self.decay).add_(gradient)
        ascent = delta * self.trace
        self.count.mul_(self.beta).add_(1)
        self.square.lerp_(ascent.square(), 1 / self.count)
        self.theta.add_(self.lr * lr_scale * ascent / (self.square.sqrt() + self.eps))


if __name__ == "__main__":
    main(Config, train)
