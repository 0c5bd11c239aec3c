"""The questions of docs/questions.md, each answered by something that happens."""

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, Normal

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from networks import Critic, NetworkSettings, ObservationLayout
from utils import gae, kl_divergence


def gaussian(mean, std=1.0):
    return Independent(Normal(mean, torch.full_like(mean, std)), 1)


def gradient_through(log_prob, mean):
    """What reaches the mean from -log_prob * A, the advantage being 1; None where the graph is cut."""
    loss = -log_prob.mean()
    return torch.autograd.grad(loss, mean)[0] if loss.requires_grad else None


def test_what_silently_detaches():
    """None of these raises an error. Each leaves the actor as it is, however good the advantages."""
    mean = torch.tensor([[0.5], [-0.5]], requires_grad=True)
    torch.manual_seed(0)
    action = gaussian(mean).sample()
    right = gradient_through(gaussian(mean).log_prob(action), mean)
    assert (right != 0).all()
    with torch.no_grad():  # the log-probability of the collection, kept
        kept = gaussian(mean).log_prob(action)
    assert gradient_through(kept, mean) is None
    through_numpy = torch.as_tensor(gaussian(mean).log_prob(action).detach().numpy())
    assert gradient_through(through_numpy, mean) is None
    numbers = torch.tensor([x.item() for x in gaussian(mean).log_prob(action)])
    assert gradient_through(numbers, mean) is None
    # The graph is whole, and cancels out: the action moves along with the mean.
    action = gaussian(mean).rsample()
    assert gradient_through(gaussian(mean).log_prob(action), mean).abs().max() < 1e-6
    detached = gradient_through(gaussian(mean).log_prob(action.detach()), mean)
    torch.testing.assert_close(detached.sign(), (mean - action).detach().sign())


def test_a_value_with_a_graph_pulls_at_the_critic():
    """The advantage has to be a constant: else the actor's loss trains the critic, to be wrong."""
    value = torch.tensor([1.0], requires_grad=True)
    policy = gaussian(torch.zeros(1, 1))
    loss, _ = epoch.policy_loss(policy, torch.ones(1, 1), 2.0 - value, 0.0)
    assert torch.autograd.grad(loss, value)[0] != 0
    loss, _ = epoch.policy_loss(policy, torch.ones(1, 1), 2.0 - value.detach(), 0.0)
    assert not loss.requires_grad


def test_why_one_step_of_the_actor():
    """A batch's gradient is the policy gradient of the policy that collected it, and of no other."""
    rewards = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    behind = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)  # the logits of the policy that collected

    def batch_gradient(logits):
        """Of policy_loss, over an endless batch: each action as often as the collecting policy takes it."""
        logits = logits.clone().requires_grad_()
        policy = Independent(Categorical(logits=logits.expand(3, 1, 3)), 1)
        weights = behind.softmax(0) * 3
        loss, _ = epoch.policy_loss(policy, torch.arange(3)[:, None], rewards * weights, 0.0)
        return -torch.autograd.grad(loss, logits)[0]

    def true_gradient(logits):
        logits = logits.clone().requires_grad_()
        return torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)[0]

    torch.testing.assert_close(batch_gradient(behind), true_gradient(behind))
    ahead = behind
    for _ in range(20):
        ahead = ahead + 1.0 * batch_gradient(ahead)
    assert (true_gradient(ahead) - batch_gradient(ahead)).norm() > 10 * true_gradient(ahead).norm()


def test_why_many_steps_of_the_critic():
    """Its targets stay what they are whatever the actor does, and more steps come nearer to them."""
    torch.manual_seed(0)
    states, returns = torch.randn(64, 3), torch.randn(64)
    losses = []
    for steps in (1, 10):
        torch.manual_seed(1)
        critic = Critic(ObservationLayout(3), NetworkSettings(hidden_sizes=(32, 32)))
        optimizer = torch.optim.RMSprop(critic.parameters(), 2e-3)
        for _ in range(steps):
            optimizer.zero_grad()
            (critic(states) - returns).square().mean().backward()
            optimizer.step()
        losses.append((critic(states) - returns).square().mean().item())
    assert losses[1] < 0.9 * losses[0]


def test_why_a_step_of_the_actor_is_bounded():
    """A step of the same length changes a policy more, the more certain it is; half a step changes it a quarter."""

    def divergence(distance, std):
        return kl_divergence(gaussian(torch.zeros(1), std), gaussian(torch.tensor([distance]), std)).item()

    assert divergence(0.1, std=1.0) == pytest.approx(0.005)
    assert divergence(0.1, std=0.1) == pytest.approx(0.5)
    assert divergence(0.05, std=0.1) == pytest.approx(0.5 / 4)
    assert divergence(0.1 * (0.01 / 0.5) ** 0.5, std=0.1) == pytest.approx(0.01)


def test_episodes_that_end_inside_a_batch():
    """Cut anywhere, a stream of episodes gives each of them the advantages that it has alone."""
    rng = np.random.default_rng(0)
    lengths = [3, 1, 4]
    rewards, values, next_values = rng.normal(size=(3, sum(lengths), 1))
    terminated, truncated = np.zeros((2, sum(lengths), 1), dtype=bool)
    terminated[2], truncated[3] = True, True  # the third episode is still going on at the batch's end
    together, _ = gae(rewards, values, next_values, terminated, truncated, 0.9, 0.8)
    pieces = np.split(np.arange(sum(lengths)), np.cumsum(lengths)[:-1])
    alone = [gae(*(x[p] for x in (rewards, values, next_values, terminated, truncated)), 0.9, 0.8)[0] for p in pieces]
    np.testing.assert_allclose(together, np.concatenate(alone))
    assert together[7] == pytest.approx(rewards[7] + 0.9 * next_values[7] - values[7])  # what lies beyond is V's to say


@pytest.mark.parametrize(("ended_by", "worth"), [("truncated", 1 / (1 - 0.9)), ("terminated", 1 / (1 - 0.9 * 0.9))])
def test_termination_is_not_truncation(ended_by, worth):
    """A reward of 1 in every step is worth 10 for ever, at a discount of 0.9.

    Called a termination, a time limit of ten steps makes the one state that there is, which cannot tell the time, worth
    5.3: every tenth of its successors counts as nothing.
    """
    value, ones = 0.0, np.ones((10, 1))
    flags = {name: np.zeros((10, 1)) for name in ("terminated", "truncated")}
    flags[ended_by][-1] = 1
    for _ in range(2000):
        advantages, _ = gae(ones, value * ones, value * ones, **flags, gamma=0.9, gae_lambda=0.0)
        value += 0.1 * advantages.mean()
    assert value == pytest.approx(worth, rel=1e-3)


def test_both_updates_sum_to_the_same_over_an_episode():
    """GAE looks forward from each action, the traces backward from each TD error: sum A_t g_t = sum delta_t e_t."""
    rng, gamma, gae_lambda = np.random.default_rng(0), 0.9, 0.7
    rewards, values, next_values = rng.normal(size=(3, 20, 1))
    terminated = np.zeros((20, 1))
    terminated[-1] = 1
    gradients = torch.tensor(rng.normal(size=(20, 5)))  # of log pi(a_t|s_t), for constant parameters
    advantages, _ = gae(rewards, values, next_values, terminated, np.zeros((20, 1)), gamma, gae_lambda)
    forward = (torch.tensor(advantages) * gradients).sum(0)
    td_errors = rewards + gamma * next_values * (1 - terminated) - values
    optimizer = step.TraceOptimizer(torch.zeros(5, dtype=torch.float64), lr=0.0, decay=gamma * gae_lambda)
    backward = torch.zeros(5, dtype=torch.float64)
    for td_error, gradient in zip(torch.tensor(td_errors), gradients, strict=True):
        optimizer.step(gradient, td_error, torch.tensor(1.0))
        backward += td_error * optimizer.trace
    torch.testing.assert_close(forward, backward)
