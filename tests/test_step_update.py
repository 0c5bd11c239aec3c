"""The step update: traces by hand, and nothing kept but them."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from gymnasium import spaces

import a2c_algorithm_step_update as step
from environments import ActionMap


def learner_for(space=None, **settings):
    torch.manual_seed(0)
    config = step.Config(hidden_sizes=(6, 5), compile=False, **settings)
    return step.A2C(config, 3, ActionMap(space or spaces.Box(-1, 1, (2,))))


def transition(rng, space):
    state, next_state = torch.tensor(rng.normal(size=(2, 3)), dtype=torch.float32)
    action = torch.tensor(rng.normal(size=2), dtype=torch.float32)
    if isinstance(space, spaces.Discrete):
        action = torch.tensor(rng.integers(0, 3, 1))
    return state, action, next_state, torch.tensor(rng.normal(), dtype=torch.float32)


@pytest.mark.parametrize("trace_lambda", [0.0, 0.8])
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3)], ids=["box", "discrete"])
def test_updates_equal_the_equations_written_out(trace_lambda, space):
    """Five transitions, an episode's end among them, against the recursion in plain autograd, trace by trace."""
    gamma = 0.9
    learner = learner_for(space, gamma=gamma, trace_lambda=trace_lambda, actor_lr=1e-2, critic_lr=2e-2)
    nets = {
        "critic": (copy.deepcopy(learner.critic.network), 2e-2),
        "actor": (copy.deepcopy(learner.actor.network), 1e-2),
    }
    critic, actor = nets["critic"][0], nets["actor"][0]
    traces = {name: [torch.zeros_like(p) for p in net.parameters()] for name, (net, _) in nets.items()}
    squares = {name: [torch.zeros_like(p) for p in net.parameters()] for name, (net, _) in nets.items()}
    rng = np.random.default_rng(0)
    for t in range(1, 6):
        state, action, next_state, reward = transition(rng, space)
        terminated = torch.tensor(float(t == 3))
        value, log_prob = critic(state), actor(state).log_prob(action)
        next_value = 0.0 if t == 3 else critic(next_state).item()
        delta = reward.item() + gamma * next_value - value.item()
        gradients = {
            "critic": torch.autograd.grad(value, list(critic.parameters())),
            "actor": torch.autograd.grad(log_prob, list(actor.parameters())),
        }
        for name, (net, lr) in nets.items():
            for i, parameter in enumerate(net.parameters()):
                traces[name][i] = gamma * trace_lambda * traces[name][i] + gradients[name][i]
                climb = delta * traces[name][i]
                squares[name][i] = 0.999 * squares[name][i] + 0.001 * climb**2
                scale = (squares[name][i] / (1 - 0.999**t)).sqrt() + 1e-8
                parameter.data += lr * 0.5 * climb / scale
        numbers = learner.update(state, action, next_state, reward, terminated, torch.tensor(0.5))
        np.testing.assert_allclose(numbers, [delta, value.item(), log_prob.item()], rtol=1e-4, atol=1e-5)
        if t == 3:
            learner.end_episode()
            for name in nets:
                traces[name] = [torch.zeros_like(trace) for trace in traces[name]]
    for own, (net, _) in ((learner.critic, nets["critic"]), (learner.actor, nets["actor"])):
        for a, b in zip(own.network.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_lambda_0_keeps_nothing_of_the_transition_before():
    learner = learner_for(trace_lambda=0.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        state, action, next_state, reward = transition(rng, spaces.Box(-1, 1, (2,)))
        network = learner.critic.network
        gradients = torch.autograd.grad(network(state), list(network.parameters()))
        learner.update(state, action, next_state, reward, torch.tensor(0.0), torch.tensor(1.0))
        torch.testing.assert_close(learner.critic_optimizer.trace, torch.cat([g.flatten() for g in gradients]))


def test_a_truncated_state_still_has_its_value():
    """r + gamma V(s') - V(s) where the episode is cut; without V(s') where the task has ended."""
    rng = np.random.default_rng(0)
    state, action, next_state, reward = transition(rng, spaces.Box(-1, 1, (2,)))
    for terminated in (0.0, 1.0):
        learner = learner_for(gamma=0.9)
        expected = reward + 0.9 * learner.critic(next_state) * (1 - terminated) - learner.critic(state)
        delta = learner.update(state, action, next_state, reward, torch.tensor(terminated), torch.tensor(1.0))[0]
        torch.testing.assert_close(delta, expected)


def test_a_timestep_is_see_scale_update_and_act_in_this_order():
    """`learn_and_act`, on three transitions, against its parts by hand; the reward's scale is NumPy's."""
    learner, parts = learner_for(), learner_for()
    rng, returns, total = np.random.default_rng(0), [], 0.0
    state = parts_state = learner.see(torch.zeros(3))
    parts.see(torch.zeros(3))
    action = parts_action = torch.zeros(2)
    for truncated in (0.0, 1.0, 0.0):
        observation = torch.tensor(rng.normal(size=3), dtype=torch.float32)
        reward, noise = float(rng.normal()), torch.tensor(rng.normal(size=2), dtype=torch.float32)
        scalars = torch.tensor([reward, 0.0, truncated, 0.5])
        state, action, env_action, numbers = learner.learn_and_act(state, action, observation, scalars, noise)
        total = total * 0.99 + reward
        returns.append(total)
        total *= 1 - truncated
        scaled = torch.tensor(reward / (np.std(returns) or 1.0), dtype=torch.float32)
        next_state = parts.see(observation)
        expected = parts.update(parts_state, parts_action, next_state, scaled, torch.tensor(0.0), torch.tensor(0.5))
        parts_state, (parts_action, parts_env_action) = next_state, parts.act(next_state, noise)
        torch.testing.assert_close(numbers, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(action, parts_action, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(env_action, parts_env_action, rtol=1e-4, atol=1e-5)


def test_nothing_of_a_transition_is_kept(tmp_path, monkeypatch):
    """Every tensor that an update is given is gone two steps later: s' is the next s, and no longer."""
    config = step.Config(total_timesteps=450, run_dir=tmp_path / "run", img_dir=tmp_path)
    given, update = [], step.A2C.learn_and_act

    def watched_update(self, *args):
        given.append([weakref.ref(argument) for argument in args])
        if len(given) % 50 == 0:
            gc.collect()
            assert not any(reference() is not None for references in given[:-2] for reference in references)
        return update(self, *args)

    monkeypatch.setattr(step.A2C, "learn_and_act", watched_update)
    step.train(config)
    assert len(given) == 450
