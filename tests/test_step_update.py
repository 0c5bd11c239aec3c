"""The step update: traces by hand, and nothing kept but them."""

import gc
import weakref

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch._inductor.utils import fresh_cache

import a2c_algorithm_step_update as step
import runs
from environments import ActionMap


def learner_for(space=None, **settings):
    torch.manual_seed(0)
    config = step.Config(hidden_sizes=(6, 5), **settings)
    return step.A2C(config, 3, ActionMap(space or spaces.Box(-1, 1, (2,))))


def transition(rng, space):
    state, next_state = torch.tensor(rng.normal(size=(2, 1, 3)), dtype=torch.float32)
    action = torch.tensor(rng.normal(size=(1, 2)), dtype=torch.float32)
    if isinstance(space, spaces.Discrete):
        action = torch.tensor(rng.integers(0, 3, (1, 1)))
    return state, action, next_state, torch.tensor(rng.normal(), dtype=torch.float32)


@pytest.mark.parametrize("trace_lambda", [0.0, 0.8])
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3)], ids=["box", "discrete"])
def test_updates_equal_the_equations_written_out(trace_lambda, space):
    """Five transitions, an episode's end among them, against the recursion in plain autograd, trace by trace."""
    gamma = 0.9
    learner = learner_for(space, gamma=gamma, trace_lambda=trace_lambda, actor_lr=1e-2, critic_lr=2e-2)
    copy = learner_for(space, gamma=gamma, trace_lambda=trace_lambda)  # the same weights: the same seed
    nets = {"critic": (copy.critic, 2e-2), "actor": (copy.actor, 1e-2)}
    traces = {name: [torch.zeros_like(p) for p in net.parameters()] for name, (net, _) in nets.items()}
    squares = {name: [torch.zeros_like(p) for p in net.parameters()] for name, (net, _) in nets.items()}
    rng = np.random.default_rng(0)
    for t in range(1, 6):
        state, action, next_state, reward = transition(rng, space)
        terminated = torch.tensor(float(t == 3))
        value, log_prob = copy.critic(state), copy.actor(state).log_prob(action)
        next_value = 0.0 if t == 3 else copy.critic(next_state).item()
        delta = reward.item() + gamma * next_value - value.item()
        gradients = {
            "critic": torch.autograd.grad(value.sum(), list(copy.critic.parameters())),
            "actor": torch.autograd.grad(log_prob.sum(), list(copy.actor.parameters())),
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
        for a, b in zip(own.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_lambda_0_keeps_nothing_of_the_transition_before():
    learner = learner_for(trace_lambda=0.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        state, action, next_state, reward = transition(rng, spaces.Box(-1, 1, (2,)))
        value = learner.critic(state)
        gradients = torch.autograd.grad(value.sum(), list(learner.critic.parameters()))
        learner.update(state, action, next_state, reward, torch.tensor(0.0), torch.tensor(1.0))
        for trace, gradient in zip(learner.critic_optimizer.traces, gradients, strict=True):
            torch.testing.assert_close(trace, gradient)


def test_a_truncated_state_still_has_its_value():
    """r + gamma V(s') - V(s) where the episode is cut; without V(s') where the task has ended."""
    rng = np.random.default_rng(0)
    state, action, next_state, reward = transition(rng, spaces.Box(-1, 1, (2,)))
    for terminated in (0.0, 1.0):
        learner = learner_for(gamma=0.9)
        with torch.no_grad():
            expected = reward + 0.9 * learner.critic(next_state) * (1 - terminated) - learner.critic(state)
        delta = learner.update(state, action, next_state, reward, torch.tensor(terminated), torch.tensor(1.0))[0]
        torch.testing.assert_close(delta, expected[0])


def test_nothing_of_a_transition_is_kept(tmp_path, monkeypatch):
    """Every tensor that an update is given is gone two steps later: s' is the next s, and no longer."""
    config = step.Config(total_timesteps=450, run_dir=tmp_path / "run", img_dir=tmp_path)
    given, update = [], step.A2C.update

    def watched_update(self, *args):
        given.append([weakref.ref(argument) for argument in args])
        if len(given) % 50 == 0:
            gc.collect()
            assert not any(reference() is not None for references in given[:-2] for reference in references)
        return update(self, *args)

    monkeypatch.setattr(step.A2C, "update", watched_update)
    step.train(config)
    assert len(given) == 450


def play(learner, update, steps=20):
    rng, numbers = np.random.default_rng(0), []
    for _ in range(steps):
        state, action, next_state, reward = transition(rng, spaces.Box(-1, 1, (2,)))
        numbers.append(update(state, action, next_state, reward, torch.tensor(0.0), torch.tensor(0.7)).numpy())
    return np.array(numbers), [parameter.detach().clone() for parameter in learner.actor.parameters()]


def test_compiled_and_eager_give_the_same_numbers():
    eager, fast = learner_for(), learner_for()
    numbers, parameters = play(eager, eager.update)
    fast_numbers, fast_parameters = play(fast, runs.compiled(fast.update, True, 10**6))
    np.testing.assert_allclose(numbers, fast_numbers, atol=1e-5)
    for a, b in zip(parameters, fast_parameters, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_without_a_compiler_it_says_so_once_and_runs_on(monkeypatch, capsys):
    eager, fallen_back = learner_for(), learner_for()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    torch.compiler.reset()
    with fresh_cache():
        numbers, _ = play(fallen_back, runs.compiled(fallen_back.update, True, 10**6))
    np.testing.assert_array_equal(numbers, play(eager, eager.update)[0])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("not compiled (")


def test_a_short_run_is_not_compiled():
    def function():
        raise NotImplementedError

    assert runs.compiled(function, True, 1000) is function
    assert runs.compiled(function, False, 10**6) is function
