"""Changes that a reader may want to make are possible where they expect it: in the script and in networks.py."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Beta, Independent

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
import training.policy
from environments import ActionMap, UsageError
from networks import Actor, Critic, FlatNetwork, GaussianActor, NetworkSettings, ObservationLayout, mlp
from training import compile_methods, evaluate, load_policy


class TorchOptimizer:
    """An optimizer of PyTorch in place of the script's own."""

    def __init__(self, network):
        self.theta, self.adam = network.theta, torch.optim.Adam(network.parameters(), lr=1e-2)
        self.state_dict, self.load_state_dict = self.adam.state_dict, self.adam.load_state_dict

    def step(self, gradient, lr_scale):
        self.theta.grad = gradient
        self.adam.step()
        return gradient.norm()


def test_an_optimizer_of_pytorch_works_and_is_said_not_to_compile(capsys):
    learners = []
    for compiled in (False, True):
        torch.manual_seed(0)
        learner = epoch.A2C(
            epoch.Config(hidden_sizes=(8,), compile=False), ObservationLayout(3), ActionMap(spaces.Box(-1, 1, (1,)))
        )
        learner.critic_optimizer = TorchOptimizer(learner.critic)
        if compiled:
            compile_methods(learner, epoch.Config(), "update_critic")
        for _ in range(3):
            learner.update_critic(torch.ones(4, 2, 3), torch.ones(4, 2), torch.tensor(1.0))
        learners.append(learner)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("update_critic is not compiled, and slower: ")
    assert "torch.compile cannot trace `self.adam.step()` (test_changes.py, line " in line
    torch.testing.assert_close(learners[0].critic.theta, learners[1].critic.theta)
    assert learners[0].critic_optimizer.state_dict()["state"][0]["step"] == 3


def test_other_metrics_are_logged(tmp_path, monkeypatch):
    """A metric of one's own goes to TensorBoard and the callback; one that is missing is NaN in updates.csv."""
    update, seen = epoch.A2C.update, []

    def other(self, batch, lr_scale):
        metrics = update(self, batch, lr_scale)
        return {"my_loss": 2.5} | {name: value for name, value in metrics.items() if name != "actor_grad_norm"}

    monkeypatch.setattr(epoch.A2C, "update", other)
    settings = {"total_timesteps": 1024, "run_dir": tmp_path / "run", "img_dir": tmp_path, "quiet": True}
    epoch.train(epoch.Config(**settings), callback=lambda run, scalars: seen.append(scalars))
    assert seen[-1]["losses/my_loss"] == 2.5
    head, row = (line.split(",") for line in (tmp_path / "run" / "updates.csv").read_text().splitlines())
    columns = dict(zip(head, row, strict=True))
    assert columns["actor_grad_norm"] == "nan"
    assert float(columns["value_loss"]) > 0


class Scaling:
    scale = 1.0

    def update(self, tensor):
        return tensor * self.scale


def test_a_number_that_changes_is_noticed(capsys):
    """Compiled code has it as it was in the first call."""
    learner = Scaling()
    compile_methods(learner, epoch.Config(quiet=True), "update")
    for learner.scale in (1.0, 2.0, 3.0):
        assert learner.update(torch.ones(2)).tolist() == [learner.scale] * 2
    assert "has changed since the first call" in capsys.readouterr().err


def test_a_part_that_was_not_saved_is_named(tmp_path):
    settings = {"total_timesteps": 512, "img_dir": tmp_path, "quiet": True}
    epoch.train(epoch.Config(run_dir=tmp_path / "run", **settings))

    class Larger(epoch.A2C):
        def __init__(self, *args):
            super().__init__(*args)
            self.parts["critic2"] = self.critic.network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(epoch, "A2C", Larger)
        with pytest.raises(UsageError, match="only one of the checkpoint and this script has critic2;"):
            epoch.train(epoch.Config(resume=tmp_path / "run", **settings))


class ScaledBeta(Beta):
    """On [-1, 1]."""

    @property
    def mode(self):
        return 2 * super().mode - 1

    def sample(self, sample_shape=()):
        return 2 * super().sample(sample_shape).clamp(1e-6, 1 - 1e-6) - 1

    def log_prob(self, value):
        return super().log_prob((value + 1) / 2) - np.log(2)


class BetaActor(Actor):
    """Has no noise that could be drawn beforehand."""

    def __init__(self, layout, nvec, bounded, settings):
        super().__init__()
        self.net = mlp(layout.size, 2 * len(bounded), settings, last_gain=0.01)

    def forward(self, observations):
        alpha, beta = (1 + nn.functional.softplus(self.net(observations))).chunk(2, dim=-1)
        return Independent(ScaledBeta(alpha, beta, validate_args=False), 1)


@pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])
def test_an_actor_may_sample_by_itself(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "make_actor", BetaActor)
    monkeypatch.setattr(training.policy, "make_actor", BetaActor)
    settings = {"total_timesteps": 1024, "run_dir": tmp_path / "run", "img_dir": tmp_path, "quiet": True}
    run = script.train(script.Config(**settings))
    policy, env_id = load_policy(run.directory)
    scores = [evaluate(p, env_id, episodes=2, seed=0, stochastic=True) for p in (policy, run.policy)]
    assert scores[0] == scores[1]


class ActorCritic(nn.Module):
    """Two networks with the same hidden layers."""

    def __init__(self, layout, settings):
        super().__init__()
        self.actor, self.critic = GaussianActor(layout, [True], settings), Critic(layout, settings)
        *trunk, _ = self.actor.mean
        self.critic.value = nn.Sequential(*trunk, self.critic.value[-1])

    def forward(self, observations):
        return self.actor(observations), self.critic(observations)


def test_actor_and_critic_may_share_layers():
    """In one vector of parameters, with one gradient; each loads its own from what is saved."""
    torch.manual_seed(0)
    settings = NetworkSettings(hidden_sizes=(8, 8))
    network = FlatNetwork(ActorCritic(ObservationLayout(3), settings))
    separate = sum(p.numel() for net in (network.network.actor, network.network.critic) for p in net.parameters())
    trunk = 3 * 8 + 8 + 8 * 8 + 8
    assert len(network.theta) == separate - trunk
    observations, actions = torch.randn(5, 3), torch.randn(5, 1)
    pi, values = network(observations)
    loss = -pi.log_prob(actions).mean() + values.square().mean()
    (gradient,) = torch.autograd.grad(loss, network.theta)
    reference = copy.deepcopy(network.network)
    pi, values = reference(observations)
    (-pi.log_prob(actions).mean() + values.square().mean()).backward()
    torch.testing.assert_close(gradient, torch.cat([p.grad.flatten() for p in reference.parameters()]))
    with torch.no_grad():
        network.theta.sub_(0.1 * gradient)
    layout = ObservationLayout(3)
    actor, critic = GaussianActor(layout, [True], settings), Critic(layout, settings)
    actor.load_state_dict(network.network.actor.state_dict())
    critic.load_state_dict(network.network.critic.state_dict())
    torch.testing.assert_close(actor(observations).mode, network(observations)[0].mode)
    torch.testing.assert_close(critic(observations), network(observations)[1])
