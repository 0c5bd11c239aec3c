"""Layer normalization and initialization have the statistics that they claim."""

import math

import pytest
import torch
from torch import nn

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from networks import Critic, GaussianActor, NetworkSettings, ObservationLayout, mlp


def inputs_of_activations(network, observations):
    seen = []
    for layer in network:
        if isinstance(layer, nn.LeakyReLU):
            seen.append(observations)
        observations = layer(observations)
    return seen


def test_layer_norm_centers_and_scales_each_layer_whatever_comes_in():
    torch.manual_seed(0)
    observations = torch.randn(100, 5) * torch.logspace(-1, 5, 5)
    network = mlp(5, 2, NetworkSettings(hidden_sizes=(32, 16)), last_gain=1.0)
    for numbers in inputs_of_activations(network, observations):
        torch.testing.assert_close(numbers.mean(-1), torch.zeros(100), atol=1e-4, rtol=0)
        torch.testing.assert_close(numbers.var(-1, correction=0), torch.ones(100), atol=1e-2, rtol=0)
    plain = mlp(5, 2, NetworkSettings(hidden_sizes=(32, 16), layer_norm=False), last_gain=1.0)
    assert all(numbers.var(-1).max() > 1e3 for numbers in inputs_of_activations(plain, observations))
    assert len(list(plain.parameters())) == len(list(network.parameters()))  # it has no weights of its own


def test_orthogonal_weights():
    first, hidden, last = (
        layer
        for layer in mlp(8, 2, NetworkSettings(hidden_sizes=(8, 6)), last_gain=0.01)
        if isinstance(layer, nn.Linear)
    )
    for layer, gain in ((first, 2**0.5), (hidden, 2**0.5), (last, 0.01)):
        expected = gain**2 * torch.eye(len(layer.weight))
        torch.testing.assert_close(layer.weight @ layer.weight.T, expected, atol=1e-5, rtol=1e-5)
        assert not layer.bias.any()
    assert not Critic(ObservationLayout(3), NetworkSettings(), last_gain=0.0)(torch.randn(5, 3)).any()


def test_the_deviation_at_first_is_smaller_where_actions_have_more_entries_but_not_in_the_step_update():
    for entries, expected in ((1, 1.0), (2, 0.5**0.5), (4, 0.5), (17, 0.4)):
        for config, std in ((epoch.Config(), expected), (step.Config(), 1.0)):
            actor = GaussianActor(ObservationLayout(2), [True] * entries, config)
            torch.testing.assert_close(actor(torch.randn(5, 2)).stddev, torch.full((5, entries), std))


def test_a_deviation_has_a_limit_and_below_it_none():
    actor = GaussianActor(ObservationLayout(2), [True], NetworkSettings())
    for log_std, expected in ((-3.0, -3.0), (3.9, 3.9), (9.0, 5.0), (1000.0, 5.0)):
        with torch.no_grad():
            actor.log_std.fill_(log_std)
        assert math.log(actor(torch.zeros(2)).stddev.item()) == pytest.approx(expected, abs=1e-3)
