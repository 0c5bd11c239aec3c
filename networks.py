"""Actor and critic: small multilayer perceptrons with layer normalisation, and their initialisation.

An actor maps observations (B, D) to a distribution over actions (B, A); a critic maps them to values (B,).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}


def mlp(sizes: Sequence[int], activation: str, last_gain: float) -> nn.Sequential:
    """A perceptron of the given layer sizes, input and output included.

    Each hidden layer is linear, normalised over its units (Ba et al. 2016, arXiv 1607.06450; without learned scale
    and shift) and passed through the activation. Normalising keeps every unit in the range where its activation
    bends, whatever the observations' scale and however far the weights have moved, and is what lets one set of
    settings serve all environments. Weights start orthogonal, biases at zero.

    Args:
        sizes: e.g. (3, 64, 64, 1).
        activation: a name in `ACTIVATIONS`.
        last_gain: scale of the last layer's weights.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [
            orthogonal(nn.Linear(inputs, outputs), 2**0.5),
            nn.LayerNorm(outputs, elementwise_affine=False),
            ACTIVATIONS[activation](),
        ]
    return nn.Sequential(*layers, orthogonal(nn.Linear(sizes[-2], sizes[-1]), last_gain))


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    """Initialise a layer with orthogonal weights (Saxe et al. 2014, arXiv 1312.6120) and no bias."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class GaussianActor(nn.Module):
    """Policy over A real numbers: a mean from the observation, a standard deviation of its own.

    The deviation is one learned number an action, the same in every state, and starts at 1.

    Args:
        observation_size: D.
        limits: for each of the A actions, how far from 0 its mean can go, which tanh sees to; infinite for no limit. A
            mean far outside the action's range would be clipped to the same action whatever the noise, and explore
            nothing.
        hidden_sizes, activation: of the hidden layers, see `mlp`.
    """

    limits: Tensor
    limited: Tensor

    def __init__(
        self, observation_size: int, limits: Sequence[float], hidden_sizes: Sequence[int], activation: str
    ) -> None:
        super().__init__()
        self.mean = mlp([observation_size, *hidden_sizes, len(limits)], activation, last_gain=0.01)
        self.log_std = nn.Parameter(torch.zeros(len(limits)))
        self.register_buffer("limits", torch.tensor(limits), persistent=False)
        self.register_buffer("limited", self.limits.isfinite(), persistent=False)

    def forward(self, observations: Tensor) -> Independent:
        """The distribution of actions (B, A); its mode is the mean."""
        mean = self.mean(observations)
        limits = self.limits.where(self.limited, 1.0)  # an infinite one, though not chosen below, would leave a NaN
        mean = torch.where(self.limited, limits * (mean / limits).tanh(), mean)
        return Independent(Normal(mean, self.log_std.exp().expand_as(mean), validate_args=False), 1)


class CategoricalActor(nn.Module):
    """Policy over A choices made at once, choice i among nvec[i]: A = 1 for a Discrete action space.

    All choices share one table of logits, as wide as the largest; what a smaller choice does not have gets
    probability 0.
    """

    def __init__(
        self, observation_size: int, nvec: Sequence[int], hidden_sizes: Sequence[int], activation: str
    ) -> None:
        super().__init__()
        self.shape = (len(nvec), max(nvec))
        self.logits = mlp([observation_size, *hidden_sizes, len(nvec) * max(nvec)], activation, last_gain=0.01)
        missing = torch.arange(max(nvec)) >= torch.tensor(nvec)[:, None]
        self.register_buffer("penalty", torch.zeros(self.shape).masked_fill(missing, -torch.inf), persistent=False)

    def forward(self, observations: Tensor) -> Independent:
        """The distribution of choices (B, A), counted from 0; its mode is the likeliest of each."""
        logits = self.logits(observations).unflatten(-1, self.shape) + self.penalty
        return Independent(Categorical(logits=logits, validate_args=False), 1)


class Critic(nn.Module):
    """Value of a state: the discounted return that the policy is expected to collect from it.

    Args:
        observation_size: D.
        hidden_sizes, activation: of the hidden layers, see `mlp`.
        last_gain: scale of the last layer's first weights; 0 starts from V = 0 everywhere.
    """

    def __init__(
        self, observation_size: int, hidden_sizes: Sequence[int], activation: str, last_gain: float = 1.0
    ) -> None:
        super().__init__()
        self.value = mlp([observation_size, *hidden_sizes, 1], activation, last_gain)

    def forward(self, observations: Tensor) -> Tensor:
        """Values (...,) of observations (..., D)."""
        return self.value(observations).squeeze(-1)
