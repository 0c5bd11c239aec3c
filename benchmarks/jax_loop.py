"""Both updates of this project in JAX, each compiled as one function together with gymnax's environments.

Measured by `benchmarks.speed`: what a user gains who gives up Gymnasium's environments, logs, metrics, checkpoints and
errors in a line (the manner of PureJaxRL: Lu et al. 2022, arXiv 2210.05639). Networks, losses, optimizers, traces, GAE,
truncation, annealing, repeated noise and the bound on the actor's steps are those of the scripts and their defaults;
running statistics are in single precision here. Shapes: T steps, N environments, D entries of an observation, A of an
action, P parameters.
"""

from functools import partial
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from benchmarks.jax_parts import Parameters, Policy, Statistics, discounted_sum, init_mlp, mlp
from benchmarks.peers import BETA, MEAN_SQUARE_HORIZON

Carry = dict[str, Any]
"""The variables of a training loop."""


class Loop:
    """A training loop: `init` makes its variables from a seed, `train` takes updates, `score` plays the policy's mode.

    Args:
        env_id: of gymnax.
        num_envs, steps: of a batch; 1 and 1 for the step update.
        timesteps: of the whole run, over which everything is annealed.
        settings: of the script's Config, as attributes.
    """

    critic_gain: float
    """Scale of the critic's last weights."""

    def __init__(self, env_id: str, num_envs: int, steps: int, timesteps: int, settings: Any) -> None:
        self.env, self.env_params = gymnax.make(env_id)
        self.num_envs, self.steps, self.timesteps, self.settings = num_envs, steps, timesteps, settings
        self.policy = Policy(self.env.action_space(self.env_params))
        self.inputs = self.env.observation_space(self.env_params).shape[0]
        self.hidden = list(settings.hidden_sizes)
        self.train = jax.jit(self._train, static_argnums=1)
        self.score = jax.jit(self._score, static_argnums=2)

    def update(self, carry: Carry, progress: Any) -> Carry:
        raise NotImplementedError

    def init(self, seed: int) -> Carry:
        actor_key, critic_key, env_key, key = jax.random.split(jax.random.key(seed), 4)
        actor, self.actor_of = ravel_pytree(self.policy.init(actor_key, self.inputs, self.hidden))
        critic, self.critic_of = ravel_pytree(init_mlp(critic_key, [self.inputs, *self.hidden, 1], self.critic_gain))
        observations, states = self.reset(jax.random.split(env_key, self.num_envs))
        return {
            "updates": jnp.zeros((), int),
            "key": key,
            "actor": Parameters.of(actor),
            "critic": Parameters.of(critic),
            "env_states": jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), states),  # no weak types
            "observations": observations,
            "obs_statistics": Statistics.of(self.inputs),
            "reward_statistics": Statistics.of(1),
            "returns": jnp.zeros(self.num_envs),
        }

    def reset(self, keys: Any) -> tuple[Any, Any]:
        return jax.vmap(self.env.reset_env, (0, None))(keys, self.env_params)

    def env_step(self, key: Any, states: Any, actions: Any) -> tuple[Any, ...]:
        """Returns the next states and observations, those after a reset where an episode ended, and (s', r, ends)."""
        keys = jax.random.split(key, 2 * self.num_envs).reshape(2, self.num_envs)
        outcome = jax.vmap(self.env.step_env, (0, 0, 0, None))(keys[0], states, actions, self.env_params)
        observations, next_states, rewards, done, _ = outcome
        endless = self.env_params.replace(max_steps_in_episode=2**30)
        terminated = jax.vmap(self.env.is_terminal, (0, None))(next_states, endless)

        def choose(first: Any, other: Any) -> Any:
            return jnp.where(done.reshape(-1, *[1] * (first.ndim - 1)), first, other)

        current = jax.tree.map(choose, self.reset(keys[1]), (observations, next_states))
        return *current, (observations, rewards.reshape(-1), terminated * 1.0, (done & ~terminated) * 1.0)

    def _train(self, carry: Carry, updates: int) -> Carry:
        def body(carry: Carry, _: None) -> tuple[Carry, None]:
            progress = carry["updates"] * self.num_envs * self.steps / self.timesteps
            return {**self.update(carry, progress), "updates": carry["updates"] + 1}, None

        return jax.lax.scan(body, carry, None, updates)[0]

    def _score(self, carry: Carry, key: Any, episodes: int) -> Any:
        """The mean return of the mode over so many episodes."""
        actor = self.actor_of(carry["actor"].theta)

        def body(playing: Any, key: Any) -> tuple[Any, Any]:
            states, observations, alive = playing
            actions = self.policy.mode(actor, carry["obs_statistics"].normalize(observations))
            keys = jax.random.split(key, episodes)
            step = jax.vmap(self.env.step_env, (0, 0, 0, None))
            observations, states, rewards, done, _ = step(keys, states, self.policy.for_env(actions), self.env_params)
            return (states, observations, alive & ~done), rewards.reshape(-1) * alive

        observations, states = self.reset(jax.random.split(key, episodes))
        keys = jax.random.split(key, self.env_params.max_steps_in_episode)
        _, rewards = jax.lax.scan(body, (states, observations, jnp.ones(episodes, bool)), keys)
        return rewards.sum(0).mean()


class EpochLoop(Loop):
    """The epoch update."""

    critic_gain = 0.0

    def update(self, carry: Carry, progress: Any) -> Carry:
        c, policy = self.settings, self.policy
        noise_key, repeat_key, env_key, key = jax.random.split(carry["key"], 4)
        noise = policy.noise(noise_key, self.steps, self.num_envs)
        probability = c.repeat_noise**policy.size * jnp.square(1 - progress)
        repeated = jax.random.uniform(repeat_key, noise.shape[:2]) < probability
        source = jax.lax.cummax(jnp.where(repeated, 0, jnp.arange(self.steps)[:, None]))
        noise = noise[source, jnp.arange(self.num_envs)]
        actor, critic, statistics = carry["actor"], carry["critic"], carry["obs_statistics"]
        params = self.actor_of(actor.theta)

        def act(now: Any, inputs: Any) -> tuple[Any, Any]:
            (states, observations), (key, noise) = now, inputs
            actions = policy.sample(params, statistics.normalize(observations), noise)
            next_observations, states, outcome = self.env_step(key, states, policy.for_env(actions))
            return (states, next_observations), (observations, actions, *outcome)

        inputs = (jax.random.split(env_key, self.steps), noise)
        now, batch = jax.lax.scan(act, (carry["env_states"], carry["observations"]), inputs)
        observations, actions, next_observations, rewards, terminated, truncated = batch
        states, next_states = statistics.normalize(observations), statistics.normalize(next_observations)
        done = jnp.maximum(terminated, truncated)
        continued = jnp.concatenate((jnp.ones((1, self.num_envs)), 1 - done))
        returns = discounted_sum(rewards, c.gamma * continued[:-1], carry["returns"])
        reward_statistics = carry["reward_statistics"].updated(returns.reshape(-1, 1))
        rewards = reward_statistics.scale(rewards)

        def value(theta: Any, states: Any) -> Any:
            return mlp(self.critic_of(theta), states)[..., 0]

        values, next_values = value(critic.theta, states), value(critic.theta, next_states)
        deltas = rewards + c.gamma * next_values * (1 - terminated) - values
        discounts = c.gamma * c.gae_lambda * (1 - done)
        advantages = discounted_sum(deltas, discounts, jnp.zeros(self.num_envs), reverse=True)
        targets = advantages + values
        advantages -= jnp.sort(advantages.reshape(-1))[(advantages.size - 1) // 2]  # PyTorch's median
        size = self.num_envs * self.steps
        alpha, lr_scale = max(0.0, 1 - size / MEAN_SQUARE_HORIZON), (1 - progress) * size**0.5

        def descend(loss: Any, parameters: Parameters, lr: float) -> Parameters:
            gradient, count = jax.grad(loss)(parameters.theta), alpha * parameters.count + 1
            square = parameters.square + (jnp.square(gradient) - parameters.square) / count
            step = gradient / (jnp.sqrt(square) + 1e-8)
            rms = jnp.sqrt(jnp.square(step).mean())
            return Parameters(parameters.theta - lr * lr_scale * step / jnp.maximum(1, rms), square, count)

        def policy_loss(theta: Any) -> Any:
            return -(policy.log_prob(self.actor_of(theta), states, actions) * advantages).mean()

        def critic_step(critic: Parameters, _: None) -> tuple[Parameters, None]:
            return descend(lambda theta: jnp.square(value(theta, states) - targets).mean(), critic, c.critic_lr), None

        new_actor = descend(policy_loss, actor, c.actor_lr)
        kl = policy.kl_divergence(params, self.actor_of(new_actor.theta), states).mean()
        fraction = jnp.minimum(1, jnp.sqrt(c.max_kl / kl))
        return carry | {
            "key": key,
            "actor": new_actor._replace(theta=actor.theta + fraction * (new_actor.theta - actor.theta)),
            "critic": jax.lax.scan(critic_step, critic, None, c.critic_updates)[0],
            "env_states": now[0],
            "observations": now[1],
            "obs_statistics": statistics.updated(observations.reshape(-1, self.inputs)),
            "reward_statistics": reward_statistics,
            "returns": returns[-1] * continued[-1],
        }


class StepLoop(Loop):
    """The step update."""

    critic_gain = 1.0

    def init(self, seed: int) -> Carry:
        carry = super().init(seed)
        noise_key, key = jax.random.split(carry["key"])
        statistics, noise = carry["obs_statistics"].updated(carry["observations"]), self.policy.noise(noise_key)
        state = statistics.normalize(carry["observations"][0])
        return carry | {
            "key": key,
            "actor_trace": jnp.zeros_like(carry["actor"].theta),
            "critic_trace": jnp.zeros_like(carry["critic"].theta),
            "obs_statistics": statistics,
            "state": state,
            "noise": noise,
            "action": self.policy.sample(self.actor_of(carry["actor"].theta), state, noise),
        }

    def update(self, carry: Carry, progress: Any) -> Carry:
        c, policy = self.settings, self.policy
        noise_key, repeat_key, env_key, key = jax.random.split(carry["key"], 4)
        outcome = self.env_step(env_key, carry["env_states"], policy.for_env(carry["action"])[None])
        observations, env_states, (next_observation, reward, terminated, truncated) = outcome
        done = jnp.maximum(terminated, truncated)
        statistics = carry["obs_statistics"].updated(next_observation)
        next_state = statistics.normalize(next_observation[0])
        returns = reward + c.gamma * carry["returns"]
        reward_statistics = carry["reward_statistics"].updated(returns[None])
        reward = reward_statistics.scale(reward)[0]

        def value(theta: Any, state: Any) -> Any:
            return mlp(self.critic_of(theta), state)[0]

        def log_prob(theta: Any) -> Any:
            return policy.log_prob(self.actor_of(theta), carry["state"], carry["action"])

        critic = carry["critic"].theta
        now, value_gradient = jax.value_and_grad(value)(critic, carry["state"])
        delta = reward + c.gamma * value(critic, next_state) * (1 - terminated[0]) - now
        gradients = {"critic": value_gradient, "actor": jax.grad(log_prob)(carry["actor"].theta)}
        new: Carry = {}
        actor_lr = c.actor_lr * policy.step_scale(self.actor_of(carry["actor"].theta))
        for name, lr in (("critic", c.critic_lr), ("actor", actor_lr)):
            theta, square, count = carry[name]
            trace = c.gamma * c.trace_lambda * carry[f"{name}_trace"] + gradients[name]
            ascent, count = delta * trace, BETA * count + 1
            square = square + (jnp.square(ascent) - square) / count
            theta = theta + lr * (1 - progress) * ascent / (jnp.sqrt(square) + 1e-8)
            new |= {name: Parameters(theta, square, count), f"{name}_trace": trace * (1 - done[0])}
        statistics = jax.tree.map(partial(jnp.where, done[0]), statistics.updated(observations), statistics)
        state = jnp.where(done[0], statistics.normalize(observations[0]), next_state)
        probability = c.repeat_noise**policy.size * (1 - progress) ** 4 * (1 - done[0])
        repeated = jax.random.uniform(repeat_key) < probability
        noise = jnp.where(repeated, carry["noise"], policy.noise(noise_key))
        new |= {
            "key": key,
            "env_states": env_states,
            "observations": observations,
            "obs_statistics": statistics,
            "reward_statistics": reward_statistics,
            "returns": returns * (1 - done),
            "state": state,
            "noise": noise,
            "action": policy.sample(self.actor_of(new["actor"].theta), state, noise),
        }
        return carry | new
