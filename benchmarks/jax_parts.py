"""What the JAX loops of `benchmarks.jax_loop` consist of: running statistics, networks, policies, discounted sums.

Each is a function or class of this project in JAX. Shapes: T steps, N environments, D entries of an observation, P
parameters.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Statistics(NamedTuple):
    """Running mean and variance, see `utils.RunningMeanStd`."""

    mean: Any
    var: Any
    count: Any

    @classmethod
    def of(cls, size: int) -> "Statistics":
        return cls(jnp.zeros(size), jnp.ones(size), jnp.zeros(()))

    def updated(self, batch: Any) -> "Statistics":
        """With a batch of vectors, (B, D)."""
        total, mean = self.count + len(batch), batch.mean(0)
        delta = mean - self.mean
        squares = self.var * self.count + jnp.square(batch - mean).sum(0)
        var = (squares + jnp.square(delta) * self.count * len(batch) / total) / total
        return Statistics(self.mean + delta * len(batch) / total, var, total)

    def normalize(self, observations: Any) -> Any:
        """See `utils.ObservationNormalizer`."""
        normalized = jnp.clip((observations - self.mean) / jnp.sqrt(self.var + 1e-8), -10, 10)
        return jnp.where(self.count > 0, normalized, observations)

    def scale(self, rewards: Any) -> Any:
        """See `utils.RewardNormalizer`."""
        return jnp.clip(rewards / jnp.where(self.var == 0, 1, jnp.sqrt(self.var)), -10, 10)


def discounted_sum(terms: Any, discounts: Any, before: Any, reverse: bool = False) -> Any:
    """y_t = x_t + d_t * y_{t-1}, or y_{t+1} if reverse, for x and d (T, N), with `before` (N,) in front."""

    def add(total: Any, inputs: Any) -> tuple[Any, Any]:
        total = inputs[0] + inputs[1] * total
        return total, total

    return jax.lax.scan(add, before, (terms, discounts), reverse=reverse)[1]


def mlp(layers: Any, inputs: Any) -> Any:
    """See `networks.mlp`."""
    *hidden, last = layers
    for weight, bias in hidden:
        inputs = inputs @ weight + bias
        inputs = (inputs - inputs.mean(-1, keepdims=True)) / jnp.sqrt(inputs.var(-1, keepdims=True) + 1e-5)
        inputs = jax.nn.leaky_relu(inputs, 0.01)
    return inputs @ last[0] + last[1]


def init_mlp(key: Any, sizes: list[int], last_gain: float) -> Any:
    """Orthogonal weights and no biases, see `networks.layer_init`."""
    gains = [2**0.5] * (len(sizes) - 2) + [last_gain]
    keys = jax.random.split(key, len(gains))
    return [
        (jax.nn.initializers.orthogonal(gain)(k, shape), jnp.zeros(shape[1]))
        for k, gain, shape in zip(keys, gains, pairwise(sizes), strict=True)
    ]


class Parameters(NamedTuple):
    """The parameters of a network, (P,), and what their optimizer remembers."""

    theta: Any
    square: Any
    count: Any

    @classmethod
    def of(cls, theta: Any) -> "Parameters":
        return cls(theta, jnp.zeros_like(theta), jnp.zeros(()))


class Policy:
    """A Gaussian or categorical policy, see `networks.GaussianActor` and `networks.CategoricalActor`."""

    def __init__(self, space: Any) -> None:
        self.discrete = hasattr(space, "n")
        self.size = 1 if self.discrete else space.shape[0]
        self.outputs = space.n if self.discrete else self.size
        self.range = None if self.discrete else (space.low, space.high)

    def init(self, key: Any, inputs: int, hidden: list[int]) -> Any:
        return init_mlp(key, [inputs, *hidden, self.outputs], 0.01), jnp.zeros(self.size)

    def noise(self, key: Any, *batch: int) -> Any:
        draw = jax.random.gumbel if self.discrete else jax.random.normal
        return draw(key, (*batch, self.outputs))

    def sample(self, params: Any, states: Any, noise: Any) -> Any:
        outputs = mlp(params[0], states)
        return (outputs + noise).argmax(-1) if self.discrete else jnp.tanh(outputs) + jnp.exp(params[1]) * noise

    def log_prob(self, params: Any, states: Any, actions: Any) -> Any:
        outputs = mlp(params[0], states)
        if self.discrete:
            return jnp.take_along_axis(jax.nn.log_softmax(outputs), actions[..., None], -1)[..., 0]
        normalized = (actions - jnp.tanh(outputs)) / jnp.exp(params[1])
        return (-0.5 * jnp.square(normalized) - params[1] - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)

    def step_scale(self, params: Any) -> Any:
        return 1.0 if self.discrete else jnp.minimum(1, 2 * self.size**0.5 * jnp.exp(params[1].mean()))

    def kl_divergence(self, old: Any, new: Any, states: Any) -> Any:
        outputs, new_outputs = mlp(old[0], states), mlp(new[0], states)
        if self.discrete:
            log_p, new_log_p = jax.nn.log_softmax(outputs), jax.nn.log_softmax(new_outputs)
            return jnp.maximum(0, (jnp.exp(log_p) * (log_p - new_log_p)).sum(-1))
        ratio = jnp.exp(2 * (old[1] - new[1]))
        shift = jnp.square((jnp.tanh(outputs) - jnp.tanh(new_outputs)) / jnp.exp(new[1]))
        return jnp.maximum(0, 0.5 * (ratio + shift - 1 - jnp.log(ratio)).sum(-1))

    def mode(self, params: Any, states: Any) -> Any:
        outputs = mlp(params[0], states)
        return outputs.argmax(-1) if self.discrete else jnp.tanh(outputs)

    def for_env(self, actions: Any) -> Any:
        """See `environments.ActionMap`."""
        if self.range is None:
            return actions
        low, high = self.range
        return jnp.clip(low + (actions + 1) * (high - low) / 2, low, high)
