"""Advantage actor-critic (A2C), step update: learn from every transition as it comes, then throw it away.

    python a2c_algorithm_step_update.py --env Pendulum-v0

Read `train` first: it is the whole algorithm, and what it calls stands above it. Sources: Sutton and Barto 2018,
section 13.5, for actor-critic with eligibility traces; Elsayed et al. 2024 (arXiv 2410.14606) for what makes it work
with neural networks on a stream: normalised observations, scaled rewards and layer normalisation.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

import environments
import runs
from environments import ActionMap, EnvFn
from networks import Critic
from runs import Run
from utils import ObservationNormalizer, RewardNormalizer, explained_variance


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
    """Decay of the eligibility traces; 0 is the textbook's one-step update."""
    actor_lr: float = 3e-4
    """Learning rate of the actor; it falls linearly to 0 over the run, as the critic's does."""
    critic_lr: float = 3e-4
    """Learning rate of the critic."""
    obs_norm: bool = True
    """Normalise observations by their running mean and deviation."""
    reward_norm: bool = True
    """Divide rewards by the running deviation of the discounted return."""
    compile: bool = True
    """Compile the update with torch.compile where the run is long enough to win the time back."""

    def validate(self) -> None:
        super().validate()
        for name in ("actor_lr", "critic_lr"):
            runs.check(self, name, getattr(self, name) > 0, "must be greater than 0")
        for name in ("gamma", "trace_lambda"):
            runs.check(self, name, 0 <= getattr(self, name) <= 1, "must be between 0 and 1")


LOG_INTERVAL = 1000
"""Timesteps between rows of updates.csv, each the mean over that many updates."""


class TraceOptimizer:
    """Moves parameters along their eligibility traces, by as much as the TD error says.

        e     <- gamma * lambda * e + grad f(s)             f = V(s) for the critic, log pi(a|s) for the actor
        theta <- theta + lr * delta * e / sqrt(mean of (delta * e)^2)

    The trace is all that stays of a transition: the fading sum of the gradients that led here, so that a surprise
    also corrects the states and actions before the last. The mean of squares is RMSprop's, running and corrected for
    its start at zero as Adam's is (Kingma and Ba 2015, arXiv 1412.6980): Adam without momentum, which the trace is
    already.

    Args:
        module: whose parameters these are.
        decay: gamma * lambda; 0 leaves the gradient of the last step alone.
        lr: learning rate.
    """

    beta2, eps = 0.999, 1e-8

    def __init__(self, module: nn.Module, decay: float, lr: float) -> None:
        self.parameters = list(module.parameters())
        self.traces = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.updates = torch.zeros((), device=self.parameters[0].device)
        self.decay = decay
        self.lr = lr

    def step(self, objective: Tensor, delta: Tensor, lr_scale: Tensor) -> None:
        """Add the gradient of `objective`, f(s), to the traces, and climb along them by the TD error `delta`."""
        gradients = torch.autograd.grad(objective, self.parameters)
        with torch.no_grad():
            self.updates += 1
            correction = 1 - self.beta2**self.updates
            for theta, e, square, gradient in zip(self.parameters, self.traces, self.squares, gradients, strict=True):
                e.mul_(self.decay).add_(gradient)
                step = delta * e
                square.lerp_(step.square(), 1 - self.beta2)
                theta.add_(self.lr * lr_scale * step / ((square / correction).sqrt() + self.eps))

    def reset(self) -> None:
        """Forget the episode that has ended: nothing that follows is its doing."""
        for trace in self.traces:
            trace.zero_()

    def state_dict(self) -> dict[str, Any]:
        return {"traces": self.traces, "squares": self.squares, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for own, saved in zip(self.traces + self.squares, state["traces"] + state["squares"], strict=True):
            own.copy_(saved)
        self.updates.copy_(state["updates"])


class A2C:
    """What is learned: actor, critic, their traces and optimisers, and the running statistics."""

    def __init__(self, config: Config, observation_size: int, action_map: ActionMap) -> None:
        self.config = config
        self.actor = runs.make_actor(config, observation_size, action_map)
        self.critic = Critic(observation_size, config.hidden_sizes, config.activation)
        self.actor.to(config.device)
        self.critic.to(config.device)
        decay = config.gamma * config.trace_lambda
        self.actor_optimizer = TraceOptimizer(self.actor, decay, config.actor_lr)
        self.critic_optimizer = TraceOptimizer(self.critic, decay, config.critic_lr)
        self.obs_normalizer = ObservationNormalizer((observation_size,))
        self.reward_normalizer = RewardNormalizer(1, config.gamma)
        self.parts = {
            "actor": self.actor,
            "critic": self.critic,
            "actor_optimizer": self.actor_optimizer,
            "critic_optimizer": self.critic_optimizer,
            "obs_normalizer": self.obs_normalizer,
            "reward_normalizer": self.reward_normalizer,
        }

    def see(self, observation: np.ndarray) -> Tensor:
        """Take a new observation (D,) into the statistics, and normalise it by them, as a batch of one: (1, D)."""
        if self.config.obs_norm:
            self.obs_normalizer.update(observation[None])
        return torch.as_tensor(self.obs_normalizer(observation[None]), device=self.config.device)

    @torch.no_grad()
    def act(self, state: Tensor) -> Tensor:
        """Sample an action (1, A) for a normalised observation (1, D)."""
        return self.actor(state).sample()

    def update(
        self, state: Tensor, action: Tensor, next_state: Tensor, reward: Tensor, terminated: Tensor, lr_scale: Tensor
    ) -> Tensor:
        """Learn from one transition, which is of no use afterwards.

            delta = r + gamma * V(s') * (1 - terminated) - V(s)

        Args:
            state, next_state: s and s', normalised, (1, D). s' is never the first state of the next episode.
            action: a, as the actor put it out, (1, A).
            reward: r, shaped and normalised, ().
            terminated: 1 if the task ended at s', else 0: a truncated episode's last state still has its value, ().
            lr_scale: share of the learning rates to use, ().

        Returns:
            delta, V(s) and log pi(a|s), (3,).
        """
        value = self.critic(state)
        log_prob = self.actor(state).log_prob(action)
        with torch.no_grad():
            delta = reward + self.config.gamma * self.critic(next_state) * (1 - terminated) - value
        self.critic_optimizer.step(value, delta, lr_scale)
        self.actor_optimizer.step(log_prob, delta, lr_scale)
        return torch.cat((delta, value, log_prob)).detach()

    def end_episode(self) -> None:
        """Clear the traces: what follows is not the doing of what went before."""
        self.actor_optimizer.reset()
        self.critic_optimizer.reset()


def metrics(learner: A2C, log: list[list[float]]) -> dict[str, float]:
    """The metrics of `runs.METRICS` from what `update` returned: means, and the norms of the last step's delta * e."""
    delta, value, log_prob = np.array(log).T
    return {
        "policy_loss": float(np.mean(-log_prob * delta)),
        "value_loss": float(np.mean(delta**2)),
        "entropy": float(np.mean(-log_prob)),  # whose expectation it is
        "explained_variance": explained_variance(value, value + delta),
        "actor_grad_norm": abs(delta[-1]) * nn.utils.get_total_norm(learner.actor_optimizer.traces).item(),
        "critic_grad_norm": abs(delta[-1]) * nn.utils.get_total_norm(learner.critic_optimizer.traces).item(),
    }


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
    potential = environments.load_potential(config.reward_shaping, config.env)
    env = environments.make_env(config.env, env_fn)
    action_map = ActionMap(env.action_space)
    learner = A2C(config, spaces.flatdim(env.observation_space), action_map)
    with Run(config, learner.parts) as run:
        run.policy = runs.Policy(learner.actor, learner.obs_normalizer, action_map)
        update = runs.compiled(learner.update, config.compile, config.total_timesteps - run.timestep)
        log: list[list[float]] = []
        observation, _ = env.reset(seed=run.env_seed)
        learner.end_episode()  # a resumed run starts a new one
        state = learner.see(observation)
        while run.unfinished:
            lr_scale = 1.0 - run.progress
            action = learner.act(state)
            next_observation, reward, terminated, truncated, _ = env.step(action_map(action.cpu().numpy())[0])
            done = terminated or truncated
            run.log_rewards(np.array([reward]), np.array([done]))  # the environment's own, neither shaped nor scaled
            run.check_finite("an observation", next_observation)
            run.check_finite("a reward", reward)
            if potential:
                shaping = environments.shaping_reward(
                    potential, observation[None], next_observation[None], np.array([terminated]), config.gamma
                )
                reward = float(reward) + shaping.item()
            if config.reward_norm:
                reward = learner.reward_normalizer(np.array([[reward]]), np.array([[done]])).item()
            next_state = learner.see(next_observation)
            scalars = torch.tensor([reward, terminated, lr_scale], dtype=torch.float32, device=config.device)
            log.append(update(state, action, next_state, *scalars).tolist())
            run.check_finite("the TD error", log[-1][0])
            if len(log) == LOG_INTERVAL or not run.unfinished:
                run.log_update(metrics(learner, log))
                log.clear()
            if done:
                learner.end_episode()
                next_observation, _ = env.reset()
                next_state = learner.see(next_observation)
            observation, state = next_observation, next_state
            if run.save_due:
                run.save()
    env.close()
    return run


if __name__ == "__main__":
    runs.main(Config, train)
