"""Actor and critic networks, their initialization, and `FlatNetwork`: a network with all parameters in one vector.

An actor maps observations (..., D) to a distribution over actions (..., A); a critic maps them to values (...,).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

LARGE_IMAGE, SMALL_IMAGE = 36, 14
"""Shorter side, in pixels: from the first on, a kernel of 8 with stride 4; from the second on, of 4 with stride 2."""
LARGE_LOG_STD = 4.0
"""Above this, the logarithm of the standard deviation saturates; it stays below this plus 1."""


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Settings of the actor and the critic."""

    hidden_sizes: tuple[int, ...] = (64, 64)
    """Units of each hidden layer, of actor and critic. Larger networks fit harder tasks but train slower."""
    layer_norm: bool = True
    """Normalize each hidden layer over its units, so that learning rates depend less on the task."""
    mean_limit: float = 1.0
    """Bounded continuous actions: tanh limits the mean of the Gaussian to [-mean_limit, mean_limit], where the action
    range is [-1, 1]. 1 keeps the mean inside the range; raise it if the best actions are at the bounds; 0: no limit."""
    smallest_initial_std: ClassVar[float] = 0.4
    """Least standard deviation at first, else 1 / sqrt(A). With 0.24, the epoch update was slow on Humanoid-v4."""


class Image(NamedTuple):
    """An image as an environment returns it."""

    shape: tuple[int, int, int]
    """Height, width and channels; or channels, height and width."""
    channels_first: bool
    high: float
    """Its largest value."""


class ObservationLayout(NamedTuple):
    """What a flat observation (D,) consists of: images first, then numbers, then a mask of invalid actions."""

    size: int
    """D."""
    images: tuple[Image, ...] = ()
    frames: int = 1
    """Frames of each image; their channels are stacked."""
    mask_size: int = 0

    @property
    def image_size(self) -> int:
        """Entries of all frames of all images."""
        return self.frames * sum(math.prod(image.shape) for image in self.images)

    @property
    def unchanged(self) -> tuple[int, int]:
        """How many entries at the beginning, and how many at the end, are not normalized: pixels, and the mask."""
        return self.image_size, self.mask_size


def network(layout: ObservationLayout, outputs: int, settings: NetworkSettings, last_gain: float) -> nn.Sequential:
    """An `mlp`, behind a `ConvolutionalEncoder` if there are images."""
    if not layout.images:
        return mlp(layout.size, outputs, settings, last_gain)
    encoder = ConvolutionalEncoder(layout, settings)
    return nn.Sequential(encoder, mlp(encoder.size, outputs, settings, last_gain))


class Linear(nn.Linear):
    """A linear layer; for one observation a matrix-vector product, which torch.compile fuses, like its gradient."""

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.mv(self.weight, inputs) + self.bias if inputs.ndim == 1 else super().forward(inputs)


def mlp(inputs: int, outputs: int, settings: NetworkSettings, last_gain: float) -> nn.Sequential:
    """A multilayer perceptron; each hidden layer is linear, layer-normalized and passed through a leaky ReLU.

    Layer normalization (Ba et al. 2016, arXiv 1607.06450) has no learned scale and shift here. It keeps the inputs of
    the activations at mean 0 and variance 1, whatever the scale of observations and weights, so that one set of
    settings fits many environments.

    Args:
        inputs, outputs: their number.
        settings: of the hidden layers.
        last_gain: scale of the last layer's weights.
    """
    layers: list[nn.Module] = []
    for size in settings.hidden_sizes:
        norm = [nn.LayerNorm(size, elementwise_affine=False)] if settings.layer_norm else []
        layers += [layer_init(Linear(inputs, size), 2**0.5), *norm, nn.LeakyReLU()]
        inputs = size
    return nn.Sequential(*layers, layer_init(Linear(inputs, outputs), last_gain))


class ConvolutionalEncoder(nn.Module):
    """Maps observations (..., D) to features of their images, followed by their other entries, (..., F).

    Convolutions follow each other until the shorter side is below 14: 8 x 8 with stride 4 where it is at least 36, else
    4 x 4 with stride 2; a smaller image has one of 3 x 3. The first has 16 filters, each next one twice as many. For 84
    x 84 these are the layers of Mnih et al. 2016 (arXiv 1602.01783).

    Args:
        layout: of the observations.
        settings: of the layers.

    Attributes:
        size: number of features, F.
    """

    def __init__(self, layout: ObservationLayout, settings: NetworkSettings) -> None:
        super().__init__()
        self.layout = layout
        self.encoders = nn.ModuleList(convolutions(image, layout.frames, settings) for image in layout.images)
        with torch.no_grad():
            self.size = self(torch.zeros(1, layout.size)).shape[-1]

    def forward(self, observations: Tensor) -> Tensor:
        layout = self.layout
        images, others = observations.tensor_split([layout.image_size], dim=-1)
        sizes = [math.prod(image.shape) for image in layout.images]
        parts = images.unflatten(-1, (layout.frames, sum(sizes))).split(sizes, dim=-1)
        features = []
        for image, pixels, encoder in zip(layout.images, parts, self.encoders, strict=True):
            pixels = pixels.unflatten(-1, image.shape)  # (..., frames, *shape)
            if image.channels_first:
                pixels = pixels.movedim(-3, -1)
            pixels = pixels.movedim(-4, -2).flatten(-2).to(torch.get_default_dtype()) / image.high
            outputs = encoder(pixels.reshape(-1, *pixels.shape[-3:]))  # convolutions take one batch dimension
            features.append(outputs.reshape(*observations.shape[:-1], outputs.shape[-1]))
        return torch.cat([*features, others.to(features[0].dtype)], dim=-1)


class Convolution(nn.Conv2d):
    """A convolution of images (B, height, width, channels), the order in memory in which it is fastest on CPUs."""

    def forward(self, images: Tensor) -> Tensor:
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        images = images.movedim(-1, -3)
        outputs = nn.functional.conv2d(images, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return outputs.movedim(-3, -1)


def convolutions(image: Image, frames: int, settings: NetworkSettings) -> nn.Sequential:
    """The convolutional layers for an image, or several frames of it: (B, height, width, channels) to (B, features)."""
    channels, height, width = image.shape if image.channels_first else (image.shape[2], *image.shape[:2])
    channels, filters = channels * frames, 16
    layers: list[nn.Module] = []
    while not layers or min(height, width) >= SMALL_IMAGE:
        side = min(height, width)
        kernel, stride = (8, 4) if side >= LARGE_IMAGE else (4, 2) if side >= SMALL_IMAGE else (3, 1)
        height, width = ((length - kernel) // stride + 1 for length in (height, width))
        norm = [nn.LayerNorm((height, width, filters), elementwise_affine=False)] if settings.layer_norm else []
        layers += [layer_init(Convolution(channels, filters, kernel, stride), 2**0.5), *norm, nn.LeakyReLU()]
        channels, filters = filters, 2 * filters
    return nn.Sequential(*layers, nn.Flatten())


def layer_init(layer: Any, gain: float) -> Any:
    """Initialize a layer in place: orthogonal weights (Saxe et al. 2014, arXiv 1312.6120) times `gain`, zero bias."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Actor(nn.Module):
    """A policy: `forward` maps observations (..., D) to a distribution over actions (..., A).

    The distribution has `sample`, `mode`, `log_prob` and `entropy`, all of actions as `ActionMap` takes them: numbers,
    where [-1, 1] is the range of a bounded entry, or values counted from 0.

    A subclass that can compute a sample from random numbers drawn beforehand overrides `noise` and `sample`. Then the
    random numbers of a whole batch are drawn at once, and `repeat_noise` can correlate them.
    """

    def noise(self, *batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Random numbers for `sample`, shape (*batch, ...); empty here, where `sample` draws its own."""
        return torch.empty(*batch, 0)

    def sample(self, distribution: Any, noise: Tensor) -> Tensor:
        """Sample actions (..., A) from a distribution that `forward` returned."""
        return distribution.sample()

    def step_scale(self, distribution: Any) -> Tensor | float:
        """Factor of the step update's steps of the actor, in (0, 1]."""
        return 1.0


class GaussianActor(Actor):
    """A diagonal Gaussian policy over continuous actions with A entries.

    The standard deviation is one learned parameter per entry, the same in every state. At first it is 1 / sqrt(A), but
    at least `settings.smallest_initial_std`. With 1 / sqrt(A), the expected squared length of the noise is 1.

    Args:
        layout: of the observations.
        bounded: whether the range of each entry is bounded, (A,). If so, tanh keeps the mean, not samples, within
            `settings.mean_limit`. Without a limit, the mean can move so far outside the range that every sample is
            clipped to the same action, and exploration stops.
        settings: of the network.
    """

    limits: Tensor

    def __init__(self, layout: ObservationLayout, bounded: Sequence[bool], settings: NetworkSettings) -> None:
        super().__init__()
        self.mean = network(layout, len(bounded), settings, last_gain=0.01)
        initial_std = max(len(bounded) ** -0.5, settings.smallest_initial_std)
        self.log_std = nn.Parameter(torch.full((len(bounded),), math.log(initial_std)))
        limits = [settings.mean_limit if limited and settings.mean_limit else math.inf for limited in bounded]
        self.register_buffer("limits", torch.tensor(limits), persistent=False)

    def forward(self, observations: Tensor) -> Independent:
        """The distribution of actions (..., A); its mode is the mean."""
        mean, limited = self.mean(observations), self.limits.isfinite()
        # Where nothing is to be learned, an entropy bonus would raise it without end.
        excess = (self.log_std - LARGE_LOG_STD).clamp(min=0.0)
        std = (self.log_std - excess + excess.tanh()).exp().expand_as(mean)
        limits = self.limits.where(limited, 1.0)  # inf * tanh(0) is NaN, and would reach the gradient through `where`
        mean = torch.where(limited, limits * (mean / limits).tanh(), mean)
        return Independent(Normal(mean, std, validate_args=False), 1)

    def noise(self, *batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise, (*batch, A)."""
        return torch.randn(*batch, len(self.limits), device=self.limits.device, generator=generator)

    def sample(self, distribution: Independent, noise: Tensor) -> Tensor:
        """Actions (..., A) by reparameterization: mean + standard deviation * noise."""
        return distribution.mean + distribution.stddev * noise

    def step_scale(self, distribution: Independent) -> Tensor:
        """2 * sqrt(A) * (geometric mean of the standard deviations), but at most 1, (...).

        The smaller the standard deviation, the more the same step of the mean changes the policy.
        """
        return (2 * len(self.limits) ** 0.5 * distribution.stddev).log().mean(-1).exp().clamp(max=1.0)


class CategoricalActor(Actor):
    """A policy over discrete actions with A entries: independent categoricals, the i-th over nvec[i] values.

    A is 1 for a Discrete space. The logits form one table (A, max(nvec)); values that an entry does not have get
    probability 0. So do invalid actions (Huang and Ontanon 2022, arXiv 2006.14171): the entropy and log-probabilities
    are those of the distribution over valid ones.

    Args:
        layout: of the observations; an entry of their mask is 0 where an action is invalid.
        nvec: number of values of each entry, (A,).
        settings: of the network.
    """

    mask: Tensor  # (A, max(nvec)): 0 where an entry has the value, -inf where not
    places: Tensor  # (A, max(nvec)): of the values in the mask that an observation ends with

    def __init__(self, layout: ObservationLayout, nvec: Sequence[int], settings: NetworkSettings) -> None:
        super().__init__()
        self.masked = layout.mask_size > 0
        self.shape = (len(nvec), max(nvec))
        self.logits = network(layout, len(nvec) * max(nvec), settings, last_gain=0.01)
        missing = torch.arange(max(nvec)) >= torch.tensor(nvec)[:, None]
        self.register_buffer("mask", torch.zeros(self.shape).masked_fill(missing, -torch.inf), persistent=False)
        first = torch.tensor(nvec).cumsum(0)[:, None] - torch.tensor(nvec)[:, None] - sum(nvec)
        places = (first + torch.arange(max(nvec))).clamp(max=-1)
        self.register_buffer("places", places, persistent=False)

    def forward(self, observations: Tensor) -> Independent:
        """The distribution of values (..., A), counted from 0; its mode has the most likely value of each entry."""
        logits = self.logits(observations).unflatten(-1, self.shape) + self.mask
        if self.masked:
            logits = logits.masked_fill(observations[..., self.places] == 0, -torch.inf)
        return Independent(Categorical(logits=logits, validate_args=False), 1)

    def noise(self, *batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Gumbel noise for each logit, (*batch, A, max(nvec))."""
        # -log(Exponential(1)) is Gumbel(0, 1); clamped, since log(0) is infinite.
        exponential = torch.empty(*batch, *self.shape, device=self.mask.device).exponential_(generator=generator)
        return -exponential.clamp_min(torch.finfo(torch.float32).tiny).log()

    def sample(self, distribution: Independent, noise: Tensor) -> Tensor:
        """Values (..., A) by the Gumbel-max trick (Maddison et al. 2014, arXiv 1411.0030): argmax(logits + noise)."""
        return (distribution.base_dist.logits + noise).argmax(-1)


def make_actor(
    layout: ObservationLayout, nvec: Sequence[int], bounded: Sequence[bool], settings: NetworkSettings
) -> Actor:
    """The actor for an action space: categorical for discrete actions, Gaussian for continuous ones.

    Args:
        layout: of the observations.
        nvec: discrete actions: number of values of each entry, (A,); empty for continuous actions.
        bounded: continuous actions: whether the range of each entry is bounded, (A,); empty for discrete actions.
        settings: of the network.
    """
    return CategoricalActor(layout, nvec, settings) if nvec else GaussianActor(layout, bounded, settings)


class Critic(nn.Module):
    """State-value function V(s): the expected discounted return of the policy from a state.

    Args:
        layout: of the observations.
        settings: of the network.
        last_gain: scale of the last layer's weights; 0 starts with V(s) = 0 everywhere.
    """

    def __init__(self, layout: ObservationLayout, settings: NetworkSettings, last_gain: float = 1.0) -> None:
        super().__init__()
        self.value = network(layout, 1, settings, last_gain)

    def forward(self, observations: Tensor) -> Tensor:
        """Values (...,) of observations (..., D)."""
        return self.value(observations).squeeze(-1)


NetworkType = TypeVar("NetworkType", bound=nn.Module)


class FlatNetwork(Generic[NetworkType]):
    """A network whose parameters are views of one vector, so that an optimizer step is a few operations on it.

    Take the gradient of a loss with `torch.autograd.grad(loss, network.theta)`; `theta.grad` is not used.

    Args:
        network: its parameters become views of `theta`, so that its `state_dict` always has the current values.

    Attributes:
        network: the module.
        theta: the parameters, (P,), a leaf of the autograd graph.
    """

    def __init__(self, network: NetworkType) -> None:
        self.network = network
        self.theta = nn.utils.parameters_to_vector(network.parameters()).detach().requires_grad_()
        nn.utils.vector_to_parameters(self.theta, network.parameters())
        self.shapes = {name: parameter.shape for name, parameter in network.named_parameters()}

    def parameters(self) -> list[Tensor]:
        """What an optimizer of PyTorch takes: `theta`, in a list."""
        return [self.theta]

    def __call__(self, observations: Tensor) -> Any:
        """The output of the network for observations (..., D), as a function of `theta`."""
        # Rebuilt from theta in every call, so that gradients reach theta.
        parts = self.theta.split([shape.numel() for shape in self.shapes.values()])
        views = {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}
        # Without tie_weights, since a layer that is part of the network twice has one name here, and is replaced once.
        return torch.func.functional_call(self.network, views, observations, tie_weights=False)
