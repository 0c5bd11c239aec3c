"""Advantage actor-critic (A2C), step update: learn from every transition as it comes, then throw it away.

    python a2c_algorithm_step_update.py --env Pendulum-v0

Read `train` first: it is the whole algorithm, and what it calls stands above it. Sources: Sutton and Barto 2018,
section 13.5, for actor-critic with eligibility traces; Elsayed et al. 2024 (arXiv 2410.14606) for what makes it work
with neural networks on a stream: normalised observations, scaled rewards and layer normalisation.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Independent

import environments
import runs
from environments import ActionMap, EnvFn
from networks import Critic, FlatNetwork
from runs import Callback, Run
from utils import ObservationNormalizer, RewardNormalizer, explained_variance, to_tensor


@dataclass(frozen=True, kw_only=True)
class Config(runs.RunConfig):
    """Train A2C: update actor and critic after every env.step, and throw the transition away."""

    script: ClassVar[str] = "step"

    activation: Literal["silu", "leaky_relu"] = "leaky_relu"
    """Activation of the hidden layers."""
    mean_limit: float = 1.0
    """How far the mean of a continuous action may leave its range (tanh keeps it there): 1 is the range's edge."""
    gamma: float = 0.99
    """Discount of future rewards."""
    trace_lambda: float = 0.8
    """Decay of the eligibility traces; 0 is the one-step update."""
    optimizer: Literal["rmsprop", "adam", "obgd"] = "rmsprop"
    """What turns a trace and a TD error into a step: see TraceOptimizer."""
    actor_lr: float | None = None
    """Learning rate of the actor. Without it: 3e-4, for obgd 1."""
    critic_lr: float | None = None
    """Learning rate of the critic. Without it: 3e-4, for obgd 1."""
    anneal_lr: bool = True
    """Let the learning rates fall linearly to 0 over the run."""
    ent_coef: float = 0.0
    """Weight of the entropy bonus of the actor."""
    obs_norm: bool = True
    """Normalise observations by their running mean and deviation."""
    reward_norm: bool = True
    """Divide rewards by the running deviation of the discounted return."""
    textbook: bool = False
    """The naive algorithm, to see what the rest is worth: one-step updates by Adam, nothing normalised or limited."""
    compile: bool = True
    """Compile the update with torch.compile where the run is long enough to win the time back."""

    def validate(self) -> None:
        super().validate()
        for name in ("actor_lr", "critic_lr"):
            lr = getattr(self, name)
            runs.check(self, name, lr is None or lr > 0, "must be greater than 0")
        for name in ("gamma", "trace_lambda"):
            runs.check(self, name, 0 <= getattr(self, name) <= 1, "must be between 0 and 1")
        runs.check(self, "ent_coef", self.ent_coef >= 0, "must not be negative")
        if self.textbook:
            for name, value in TEXTBOOK.items():
                fits = getattr(self, name) in (value, getattr(Config, name))
                runs.check(self, name, fits, "contradicts --textbook; leave one out")


TEXTBOOK: dict[str, Any] = {
    "trace_lambda": 0.0,
    "optimizer": "adam",
    "anneal_lr": False,
    "layer_norm": False,
    "obs_norm": False,
    "reward_norm": False,
    "mean_limit": 0.0,
}
"""Settings of `--textbook`."""

COMPILE_PAYS_FROM = 20_000
"""Timesteps after which compiling, which takes some 20 s, has won them back."""


class TraceOptimizer(nn.Module):
    """Moves parameters along their eligibility traces, by as much as the TD error says.

        e     <- gamma * lambda * e + grad f(s)             f = V(s) for the critic, log pi(a|s) for the actor
        theta <- theta + lr * step(delta * e)

    The trace is all that stays of a transition: the fading sum of the gradients that led here, so that a surprise also
    corrects the states and actions before the last. What `step` is depends on the rule:

    - rmsprop: g / sqrt(mean of g^2), the mean running and corrected for its start at zero as Adam's is. Adam without
      momentum, which the trace is already.
    - adam: momentum besides, of g = delta * e (Kingma and Ba 2015, arXiv 1412.6980).
    - obgd: g / max(1, lr * kappa * max(1, |delta|) * |e|_1). Where f is linear in theta, with inputs of at most 1, no
      step is then so long that the TD error changes its sign (Elsayed et al. 2024, arXiv 2410.14606, algorithm 3).

    Args:
        theta: the parameters, (P,).
        decay: gamma * lambda; 0 leaves the gradient of the last step alone.
        rule: rmsprop, adam or obgd.
        lr: learning rate; None for the rule's own.
        kappa: of obgd, how much stricter than necessary its bound is.
    """

    trace: Tensor
    mean: Tensor
    square: Tensor
    updates: Tensor
    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def __init__(self, theta: Tensor, decay: float, rule: str, lr: float | None, kappa: float) -> None:
        super().__init__()
        self.theta = theta
        self.decay = decay
        self.rule = rule
        self.lr = lr or (1.0 if rule == "obgd" else 3e-4)
        self.kappa = kappa
        for name in ("trace", "mean", "square"):
            self.register_buffer(name, torch.zeros_like(theta))
        self.register_buffer("updates", theta.new_zeros(1))

    def step(self, gradient: Tensor, delta: Tensor, lr_scale: Tensor) -> None:
        """Add the gradient of f(s), (P,), to the trace, and climb along it by the TD error `delta`, ()."""
        self.trace.mul_(self.decay).add_(gradient)
        climb = delta * self.trace
        if self.rule == "obgd":
            bound = self.lr * self.kappa * delta.abs().clamp(min=1.0) * self.trace.abs().sum()
            climb = climb / bound.clamp(min=1.0)
        else:
            self.updates.add_(1)
            self.square.lerp_(climb.square(), 1 - self.beta2)
            mean_square = self.square / (1 - self.beta2**self.updates)
            if self.rule == "adam":
                self.mean.lerp_(climb, 1 - self.beta1)
                climb = self.mean / (1 - self.beta1**self.updates)
            climb = climb / (mean_square.sqrt() + self.eps)
        self.theta.add_(self.lr * lr_scale * climb)


class A2C:
    """What is learned: actor, critic, their traces and optimisers, and the running statistics."""

    def __init__(self, config: Config, observation_size: int, action_map: ActionMap) -> None:
        self.config = config
        self.action_map = action_map.to(config.device)
        actor = runs.make_actor(config, observation_size, action_map)
        self.actor, self.sample, self.noise = FlatNetwork(actor), actor.sample, actor.noise
        self.critic = FlatNetwork(Critic(observation_size, config.hidden).to(config.device))
        decay, rule = config.gamma * config.trace_lambda, config.optimizer
        self.actor_optimizer = TraceOptimizer(self.actor.theta, decay, rule, config.actor_lr, kappa=3.0)
        self.critic_optimizer = TraceOptimizer(self.critic.theta, decay, rule, config.critic_lr, kappa=2.0)
        self.obs_normalizer = ObservationNormalizer(observation_size).to(config.device)
        self.reward_normalizer = RewardNormalizer(1, config.gamma).to(config.device)
        self.parts = {
            "actor": self.actor.network,
            "critic": self.critic.network,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "obs_normalizer": self.obs_normalizer,
            "reward_normalizer": self.reward_normalizer,
        }
        if config.compile and config.total_timesteps >= COMPILE_PAYS_FROM:
            runs.compile_methods(self, "learn_and_act")

    def see(self, observation: Tensor) -> Tensor:
        """Take a new observation (D,) into the statistics, and normalise it by them."""
        if self.config.obs_norm:
            self.obs_normalizer.update(observation[None])
        return self.obs_normalizer(observation)

    def act(self, state: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Sample an action in a state (D,): as the actor puts it out, (A,), and as the environment takes it."""
        action = self.sample(self.actor(state), noise)
        return action, self.action_map(action)

    @torch.no_grad()
    def learn_and_act(
        self, state: Tensor, action: Tensor, observation: Tensor, scalars: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that happens between two steps of the environment, as one function to compile.

        Args:
            state, action: s, normalised, (D,), and a as the actor put it out, (A,).
            observation: s', not normalised, (D,).
            scalars: r, terminated, truncated and the share of the learning rates to use, (4,).
            noise: for the next action, see the actor's `noise`.

        Returns:
            s', normalised, the action to take there, as the actor puts it out and as the environment takes it, and what
            `update` returned.
        """
        reward, terminated, truncated, lr_scale = scalars.unbind()
        next_state = self.see(observation)
        if self.config.reward_norm:
            reward = self.reward_normalizer(
                reward.view(1, 1), torch.maximum(terminated, truncated).view(1, 1)
            ).squeeze()
        numbers = self.update(state, action, next_state, reward, terminated, lr_scale)
        return next_state, *self.act(next_state, noise), numbers

    def update(
        self, state: Tensor, action: Tensor, next_state: Tensor, reward: Tensor, terminated: Tensor, lr_scale: Tensor
    ) -> Tensor:
        """Learn from one transition, which is of no use afterwards.

            delta = r + gamma * V(s') * (1 - terminated) - V(s)

        Args:
            state, next_state: s and s', normalised, (D,). s' is never the first state of the next episode.
            action: a, as the actor put it out, (A,).
            reward: r, shaped and normalised, ().
            terminated: 1 if the task ended at s', else 0: a truncated episode's last state still has its value, ().
            lr_scale: share of the learning rates to use, ().

        Returns:
            delta, V(s) and log pi(a|s), (3,).
        """
        value_gradient, (value,) = self.critic.gradient(lambda value: (value,), state)
        delta = reward + self.config.gamma * self.critic(next_state) * (1 - terminated) - value
        # The step will be delta times this: the sign makes more of the entropy whichever way delta points.
        ent_coef = self.config.ent_coef * delta.sign()

        def climbed(policy: Independent) -> tuple[Tensor, Tensor]:
            log_prob = policy.log_prob(action)
            return log_prob + ent_coef * policy.entropy(), log_prob

        log_prob_gradient, (_, log_prob) = self.actor.gradient(climbed, state)
        self.critic_optimizer.step(value_gradient, delta, lr_scale)
        self.actor_optimizer.step(log_prob_gradient, delta, lr_scale)
        return torch.stack((delta, value, log_prob))

    def end_episode(self) -> None:
        """Clear the traces: what follows is not the doing of what went before."""
        self.actor_optimizer.trace.zero_()
        self.critic_optimizer.trace.zero_()


def metrics(learner: A2C, log: list[list[float]]) -> dict[str, float]:
    """The metrics of `runs.METRICS` from what `update` returned: means, and the norms of the last step's delta * e."""
    delta, value, log_prob = np.array(log).T
    return {
        "policy_loss": float(np.mean(-log_prob * delta)),
        "value_loss": float(np.mean(delta**2)),
        "entropy": float(np.mean(-log_prob)),  # whose expectation it is
        "explained_variance": explained_variance(*torch.tensor(np.array((value, value + delta)))).item(),
        "actor_grad_norm": abs(delta[-1]) * learner.actor_optimizer.trace.norm().item(),
        "critic_grad_norm": abs(delta[-1]) * learner.critic_optimizer.trace.norm().item(),
    }


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
    if config.textbook:
        config = dataclasses.replace(config, **TEXTBOOK)
    torch.manual_seed(config.seed)
    potential = environments.load_potential(config.reward_shaping, config.env)
    env = environments.make_env(config.env, env_fn)
    action_map = ActionMap(env.action_space)
    learner = A2C(config, spaces.flatdim(env.observation_space), action_map)
    with Run(config, learner.parts, env, callback) as run:
        run.policy = runs.Policy(learner.actor.network, learner.obs_normalizer, action_map)
        seed: int | None = run.env_seed
        done, log = True, []
        if run.resumed:
            seed = None
            done, log, observation, state, action, env_action, episode_return, length = run.resumed
        while run.unfinished:
            if done:
                learner.end_episode()
                observation, _ = env.reset(seed=seed)
                run.check_finite("an observation", observation)
                state = learner.see(to_tensor(observation, config.device))
                action, env_action = learner.act(state, learner.noise())
                seed, episode_return, length = None, 0.0, 0
            lr_scale = 1.0 - run.progress if config.anneal_lr else 1.0
            next_observation, reward, terminated, truncated, _ = env.step(env_action.cpu().numpy()[()])
            run.count(1)
            done = terminated or truncated
            episode_return, length = episode_return + float(reward), length + 1
            if done:  # the environment's own rewards, neither shaped nor scaled
                run.log_episode(episode_return, length)
            if potential:
                shaping = environments.shaping_reward(
                    potential, observation[None], next_observation[None], np.array([terminated]), config.gamma
                )
                reward = float(reward) + shaping.item()
            scalars = [reward, terminated, truncated, lr_scale]
            state, action, env_action, numbers = learner.learn_and_act(
                state,
                action,
                to_tensor(next_observation, config.device),
                to_tensor(scalars, config.device),
                learner.noise(),
            )
            log.append(numbers.tolist())
            if not math.isfinite(log[-1][0]):
                run.check_finite("an observation", next_observation)
                run.check_finite("a reward", reward)
                run.check_finite("the TD error", log[-1][0])
            if run.log_due:
                run.log_update(metrics(learner, log))
                log.clear()
            observation = next_observation
            if run.save_due:
                run.save(done, log, observation, state, action, env_action, episode_return, length)
    env.close()
    return run


if __name__ == "__main__":
    runs.main(Config, train)
