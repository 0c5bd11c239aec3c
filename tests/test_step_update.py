"""The step update: traces by hand, and nothing kept but them."""

import copy
import gc
import itertools
import json
import weakref

import numpy as np
import pytest
import torch
from gymnasium import spaces

import a2c_algorithm_step_update as step
from environments import ActionMap
from networks import ObservationLayout


def learner_for(space=None, **settings):
    torch.manual_seed(0)
    config = step.Config(hidden_sizes=(6, 5), compile=False, **settings)
    return step.A2C(config, ObservationLayout(3), ActionMap(space or spaces.Box(-1, 1, (2,))))


def transition(rng, space):
    state, next_state = torch.tensor(rng.normal(size=(2, 3)), dtype=torch.float32)
    action = torch.tensor(rng.normal(size=2), dtype=torch.float32)
    if isinstance(space, spaces.Discrete):
        action = torch.tensor(rng.integers(0, 3, 1))
    return state, action, next_state, torch.tensor(rng.normal(), dtype=torch.float32)


def one_step(climb, state, t, lr):
    """A parameter's step along climb = delta * e by RMSprop with bias correction; `state` is its mean of squares."""
    state["square"] = 0.999 * state.get("square", 0.0) + 0.001 * climb**2
    return lr * climb / ((state["square"] / (1 - 0.999**t)).sqrt() + 1e-8)


@pytest.mark.parametrize("trace_lambda", [0.0, 0.85])
@pytest.mark.parametrize(
    ("space", "std"),
    [(spaces.Box(-1, 1, (2,)), (0.7, 0.1)), (spaces.Box(-1, 1, (2,)), (1.5, 0.3)), (spaces.Discrete(3), None)],
    ids=["box with a small standard deviation", "box", "discrete"],
)
def test_updates_equal_the_equations_written_out(trace_lambda, space, std):
    """Five transitions, an episode's end among them, against the recursion in plain autograd, trace by trace."""
    gamma, ent_coef = 0.9, 0.1
    lrs = {"critic": 2e-2, "actor": 1e-2}
    settings = {"actor_lr": lrs["actor"], "critic_lr": lrs["critic"], "ent_coef": ent_coef}
    learner = learner_for(space, gamma=gamma, trace_lambda=trace_lambda, **settings)
    if std:
        learner.actor.network.log_std.data.copy_(torch.tensor(std).log())
    nets = {"critic": copy.deepcopy(learner.critic.network), "actor": copy.deepcopy(learner.actor.network)}
    traces = {name: [torch.zeros_like(p) for p in net.parameters()] for name, net in nets.items()}
    states: dict = {name: [{} for _ in net.parameters()] for name, net in nets.items()}
    rng = np.random.default_rng(0)
    for t in range(1, 6):
        state, _, next_state, reward = transition(rng, space)
        action, _ = learner.act(state, learner.actor.network.noise())  # in the support of any policy
        terminated = torch.tensor(float(t == 3))
        value, policy = nets["critic"](state), nets["actor"](state)
        next_value = 0.0 if t == 3 else nets["critic"](next_state).item()
        delta = reward.item() + gamma * next_value - value.item()
        climbed = {"critic": value, "actor": policy.log_prob(action) + ent_coef * np.sign(delta) * policy.entropy()}
        for name, net in nets.items():
            gradients = torch.autograd.grad(climbed[name], list(net.parameters()))
            traces[name] = [gamma * trace_lambda * e + g for e, g in zip(traces[name], gradients, strict=True)]
        scales = {"critic": 0.5, "actor": 0.5}
        if std:  # with two entries, steps are shortened below 1 / (2 * sqrt(2))
            scales["actor"] *= min(1.0, policy.stddev.prod().item() ** 0.5 / 0.125**0.5)
        for name, net in nets.items():
            for parameter, own, trace in zip(net.parameters(), states[name], traces[name], strict=True):
                parameter.data += scales[name] * one_step(delta * trace, own, t, lrs[name])
        log_prob = policy.log_prob(action).item()
        numbers = learner.update(state, action, next_state, reward, terminated, torch.tensor(0.5))
        np.testing.assert_allclose(numbers, [delta, value.item(), log_prob], rtol=1e-4, atol=1e-5)
        if t == 3:
            learner.reset_traces()
            for name in nets:
                traces[name] = [torch.zeros_like(trace) for trace in traces[name]]
    for own, net in ((learner.critic, nets["critic"]), (learner.actor, nets["actor"])):
        for a, b in zip(own.network.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_textbook_is_rmsprop_on_the_one_step_update_and_nothing_else():
    """Raw observations and rewards, against torch.optim.Adam without momentum on the textbook's two losses."""
    space = spaces.Box(-1, 1, (2,))
    learner = learner_for(space, textbook=True, **step.TEXTBOOK)
    learner.actor.network.log_std.data.sub_(2.0)  # with the defaults, a smaller deviation shortens the steps
    modules = {type(module) for network in (learner.actor, learner.critic) for module in network.network.modules()}
    assert torch.nn.LayerNorm not in modules
    actor, critic = copy.deepcopy(learner.actor.network), copy.deepcopy(learner.critic.network)
    groups = [{"params": [*actor.parameters()], "lr": 3e-4}, {"params": [*critic.parameters()], "lr": 3e-4}]
    optimizer = torch.optim.Adam(groups, betas=(0.0, 0.999))
    rng = np.random.default_rng(0)
    action, state = torch.zeros(2), learner.observe(torch.zeros(3))
    for _ in range(5):
        observation, reward = torch.tensor(rng.normal(5, 9, 3), dtype=torch.float32), float(rng.normal(-8))
        scalars, noise = torch.tensor([reward, 0.0, 0.0, 1.0]), torch.tensor(rng.normal(size=2), dtype=torch.float32)
        delta = reward + 0.995 * critic(observation).detach() - critic(state)
        (delta.square() / 2 - actor(state).log_prob(action) * delta.detach()).backward()
        optimizer.step()
        optimizer.zero_grad()
        state, action, _, numbers = learner.learn_and_act(state, action, observation, scalars, noise)
        assert torch.equal(state, observation)
        torch.testing.assert_close(numbers[0], delta.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(action, actor.mean(observation).detach() + actor.log_std.exp().detach() * noise)
    for own, network in ((learner.actor, actor), (learner.critic, critic)):
        torch.testing.assert_close(own.theta, torch.nn.utils.parameters_to_vector(network.parameters()))


def test_textbook_run_is_what_it_says(tmp_path):
    run = step.train(step.Config(textbook=True, total_timesteps=300, run_dir=tmp_path / "run", img_dir=tmp_path))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {name: saved[name] for name in step.TEXTBOOK} == step.TEXTBOOK
    assert run.config.textbook
    assert run.policy.normalizer.count == 0


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


def test_a_timestep_is_observe_scale_update_and_act_in_this_order():
    """`learn_and_act`, on three transitions, against its parts by hand; the reward's scale is NumPy's."""
    learner, parts = learner_for(), learner_for()
    rng, returns, total = np.random.default_rng(0), [], 0.0
    state = parts_state = learner.observe(torch.zeros(3))
    parts.observe(torch.zeros(3))
    action = parts_action = torch.zeros(2)
    for truncated in (0.0, 1.0, 0.0):
        observation = torch.tensor(rng.normal(size=3), dtype=torch.float32)
        reward, noise = float(rng.normal()), torch.tensor(rng.normal(size=2), dtype=torch.float32)
        scalars = torch.tensor([reward, 0.0, truncated, 0.5])
        torch.manual_seed(len(returns))  # for an actor that samples by itself
        state, action, env_action, numbers = learner.learn_and_act(state, action, observation, scalars, noise)
        torch.manual_seed(len(returns))
        total = total * 0.995 + reward
        returns.append(total)
        total *= 1 - truncated
        scaled = torch.tensor(reward / (np.std(returns) or 1.0), dtype=torch.float32)
        next_state = parts.observe(observation)
        expected = parts.update(parts_state, parts_action, next_state, scaled, torch.tensor(0.0), torch.tensor(0.5))
        parts_state, (parts_action, parts_env_action) = next_state, parts.act(next_state, noise)
        torch.testing.assert_close(numbers, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(action, parts_action, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(env_action, parts_env_action, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_nothing_of_a_transition_is_kept(tmp_path, monkeypatch):
    """Every tensor that an update is given is gone two steps later: s' is the next s, and no longer."""
    config = step.Config(total_timesteps=450, run_dir=tmp_path / "run", img_dir=tmp_path, repeat_noise=0.0)
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


@pytest.mark.slow
@pytest.mark.parametrize(("env", "entries"), [("Pendulum-v0", 1), ("Reacher-v4", 2)])
def test_noise_is_repeated_less_and_less(env, entries, tmp_path, monkeypatch):
    seen = []
    learn_and_act = step.A2C.learn_and_act

    def watch(self, state, action, observation, outcome, noise):
        seen.append(noise.clone())
        return learn_and_act(self, state, action, observation, outcome, noise)

    monkeypatch.setattr(step.A2C, "learn_and_act", watch)
    settings = {"total_timesteps": 2_000, "run_dir": tmp_path / "run", "img_dir": tmp_path, "quiet": True}
    step.train(step.Config(env=env, compile=False, repeat_noise=0.7, **settings))
    same = np.array([torch.equal(a, b) for a, b in itertools.pairwise(seen)])
    for part, progress in zip(np.array_split(same, 4), (0.125, 0.375, 0.625, 0.875), strict=True):
        assert part.mean() == pytest.approx(0.7**entries * (1 - progress) ** 4, abs=0.07)
    assert torch.stack(seen).std() == pytest.approx(1.0, abs=0.15)
