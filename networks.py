"""Actor and critic: small multilayer perceptrons, normalised layer by layer, and their initialisation.

An actor maps observations (..., D) to a distribution over actions (..., A); a critic maps them to values (...,).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

ACTIVATIONS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "leaky_relu": nn.LeakyReLU}


class Hidden(NamedTuple):
    """What stands between a network's input and its output."""

    sizes: Sequence[int] = (64, 64)
    """Units in each layer."""
    activation: str = "silu"
    """A name in `ACTIVATIONS`."""
    layer_norm: bool = True
    """Whether each layer is normalised over its units (Ba et al. 2016, arXiv 1607.06450), without learned scale and
    shift. It keeps every unit in the range where its activation bends, whatever the observations' scale and however far
    the weights have moved, and is what lets one set of settings serve all environments."""
    init: str = "orthogonal"
    """What the weights start as, those of the output included: orthogonal or sparse."""


def mlp(inputs: int, hidden: Hidden, outputs: int, last_gain: float) -> nn.Sequential:
    """A perceptron; each hidden layer is linear, normalised over its units and passed through the activation.

    Args:
        last_gain: scale of the last layer's weights, where they start orthogonal.
    """
    layers: list[nn.Module] = []
    for size in hidden.sizes:
        norm = [nn.LayerNorm(size, elementwise_affine=False)] * hidden.layer_norm
        layers += [start(nn.Linear(inputs, size), hidden.init, 2**0.5), *norm, ACTIVATIONS[hidden.activation]()]
        inputs = size
    return nn.Sequential(*layers, start(nn.Linear(inputs, outputs), hidden.init, last_gain))


def start(layer: nn.Linear, init: str, gain: float) -> nn.Linear:
    """Initialise a layer, with no bias, and weights that are

    - orthogonal (Saxe et al. 2014, arXiv 1312.6120), scaled by a gain, or
    - sparse: of each unit's n inputs 90 %, rounded up, are cut off, the others drawn between -1 / sqrt(n) and
      1 / sqrt(n), as in the code of Elsayed et al. 2024 (arXiv 2410.14606, algorithm 1). Of fewer than ten inputs
      that leaves none: the first layer of small observations starts at zero.
    """
    nn.init.zeros_(layer.bias)
    if init == "orthogonal":
        nn.init.orthogonal_(layer.weight, gain)
    else:
        inputs = layer.in_features
        nn.init.uniform_(layer.weight, -(inputs**-0.5), inputs**-0.5)
        cut = torch.rand(layer.weight.shape).argsort(dim=1) < math.ceil(0.9 * inputs)
        layer.weight.data[cut] = 0.0
    return layer


class GaussianActor(nn.Module):
    """Policy over A real numbers: a mean from the observation, a standard deviation of its own.

    The deviation is one learned number an action, the same in every state, and starts at 1; or the network's softplus,
    another one in every state.

    Args:
        observation_size: D.
        limits: for each of the A actions, how far from 0 its mean can go, which tanh sees to; infinite for no limit. A
            mean far outside the action's range would be clipped to the same action whatever the noise, and explore
            nothing.
        hidden: the hidden layers.
        state_std: whether the deviation depends on the state.
    """

    limits: Tensor

    def __init__(self, observation_size: int, limits: Sequence[float], hidden: Hidden, state_std: bool = False) -> None:
        super().__init__()
        outputs = len(limits) * (2 if state_std else 1)
        self.mean = mlp(observation_size, hidden, outputs, last_gain=0.01)
        self.log_std = None if state_std else nn.Parameter(torch.zeros(len(limits)))
        self.register_buffer("limits", torch.tensor(limits), persistent=False)

    def forward(self, observations: Tensor) -> Independent:
        """The distribution of actions (..., A); its mode is the mean."""
        mean, limited = self.mean(observations), self.limits.isfinite()
        if self.log_std is None:
            mean, std = mean.chunk(2, dim=-1)
            std = nn.functional.softplus(std)
        else:
            std = self.log_std.exp().expand_as(mean)
        limits = self.limits.where(limited, 1.0)  # an infinite one, though not chosen below, would leave a NaN
        mean = torch.where(limited, limits * (mean / limits).tanh(), mean)
        return Independent(Normal(mean, std, validate_args=False), 1)

    def noise(self, *batch: int) -> Tensor:
        """What chance contributes to actions (*batch, A): standard normal numbers, (*batch, A)."""
        return torch.randn(*batch, len(self.limits), device=self.limits.device)

    def sample(self, distribution: Independent, noise: Tensor) -> Tensor:
        """Actions (..., A) from what `forward` returned and noise drawn beforehand: nothing random to compile."""
        return distribution.mean + distribution.stddev * noise


class CategoricalActor(nn.Module):
    """Policy over A choices made at once, choice i among nvec[i]: A = 1 for a Discrete action space.

    All choices share one table of logits, as wide as the largest; what a smaller choice does not have gets
    probability 0.
    """

    penalty: Tensor

    def __init__(self, observation_size: int, nvec: Sequence[int], hidden: Hidden) -> None:
        super().__init__()
        self.shape = (len(nvec), max(nvec))
        self.logits = mlp(observation_size, hidden, len(nvec) * max(nvec), last_gain=0.01)
        missing = torch.arange(max(nvec)) >= torch.tensor(nvec)[:, None]
        self.register_buffer("penalty", torch.zeros(self.shape).masked_fill(missing, -torch.inf), persistent=False)

    def forward(self, observations: Tensor) -> Independent:
        """The distribution of choices (..., A), counted from 0; its mode is the likeliest of each."""
        logits = self.logits(observations).unflatten(-1, self.shape) + self.penalty
        return Independent(Categorical(logits=logits, validate_args=False), 1)

    def noise(self, *batch: int) -> Tensor:
        """What chance contributes to choices (*batch, A): Gumbel noise for each logit, (*batch, A, max(nvec))."""
        exponential = torch.empty(*batch, *self.shape, device=self.penalty.device).exponential_()
        return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()

    def sample(self, distribution: Independent, noise: Tensor) -> Tensor:
        """Choices (..., A) from what `forward` returned and noise drawn beforehand: nothing random to compile.

        The largest of logits plus Gumbel noise is a draw from their softmax (Maddison et al. 2014, arXiv 1411.0030).
        """
        return (distribution.base_dist.logits + noise).argmax(-1)


class Critic(nn.Module):
    """Value of a state: the discounted return that the policy is expected to collect from it.

    Args:
        observation_size: D.
        hidden: the hidden layers.
        last_gain: scale of the last layer's first weights, where they are orthogonal; 0 starts from V = 0 everywhere.
    """

    def __init__(self, observation_size: int, hidden: Hidden, last_gain: float = 1.0) -> None:
        super().__init__()
        self.value = mlp(observation_size, hidden, 1, last_gain)

    def forward(self, observations: Tensor) -> Tensor:
        """Values (...,) of observations (..., D)."""
        return self.value(observations).squeeze(-1)


class FlatNetwork:
    """A network whose parameters lie in one vector, so that an equation for all of them is one operation in the code.

    A loop over layers would spend its time in calling; and a function of one vector compiles into few loops.

    Args:
        network: its own parameters become views of the vector, and so stay what they are, also where it is saved.

    Attributes:
        theta: the parameters, (P,).
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.theta = nn.utils.parameters_to_vector(network.parameters()).detach()
        nn.utils.vector_to_parameters(self.theta, network.parameters())
        self.shapes = {name: parameter.shape for name, parameter in network.named_parameters()}

    def __call__(self, observations: Tensor, theta: Tensor | None = None) -> Any:
        """What the network says of observations (..., D), with its own parameters or with others, (P,)."""
        parts = (self.theta if theta is None else theta).split([shape.numel() for shape in self.shapes.values()])
        views = {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}
        return torch.func.functional_call(self.network, views, observations)

    def gradient(
        self, function: Callable[[Any], tuple[Tensor, ...]], observations: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The gradient with respect to theta, (P,), of the first number of function(network(observations)).

        Returns:
            The gradient, and all that the function returned, without their graph.
        """
        with torch.enable_grad():
            theta = self.theta.detach().requires_grad_()
            numbers = function(self(observations, theta))
            (gradient,) = torch.autograd.grad(numbers[0], theta)
        return gradient, tuple(number.detach() for number in numbers)
