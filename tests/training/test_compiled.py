"""Compiled and eager give the same numbers, and without a compiler a run goes on."""

import gc
import weakref

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch._inductor.utils import fresh_cache

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from environments import ActionMap
from networks import FlatNetwork, ObservationLayout
from training import compile_methods
from training.compiled import Compiled

pytestmark = pytest.mark.slow

CONTINUOUS, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 4])
METHODS = {step: ["learn_and_act"], epoch: ["act", "update_actor", "update_critic"]}


def learner_for(script, space):
    torch.manual_seed(0)
    return script.A2C(script.Config(hidden_sizes=(6, 5), compile=False), ObservationLayout(3), ActionMap(space))


def play(learner, updates=20):
    """Everything that the learner's compiled methods return, and its parameters after that."""
    rng, numbers = torch.Generator().manual_seed(0), []
    torch.manual_seed(1)
    if isinstance(learner, step.A2C):
        state = torch.randn(3, generator=rng)
        action, _ = learner.act(state, learner.actor.network.noise())
        for _ in range(updates):
            observation, scalars = torch.randn(3, generator=rng), torch.tensor([-1.0, 0.0, 0.0, 0.7])
            state, action, *rest = learner.learn_and_act(
                state, action, observation, scalars, learner.actor.network.noise()
            )
            numbers += [state, action, *rest]
    else:
        for _ in range(updates):
            seen, reached = torch.randn(2, 5, 16, 3, generator=rng)
            played = [
                learner.act(observations, noise)
                for observations, noise in zip(seen, learner.actor.network.noise(5, 16), strict=True)
            ]
            actions, env_actions = map(torch.stack, zip(*played, strict=True))
            rewards, ends = torch.randn(5, 16, generator=rng), torch.rand(2, 5, 16, generator=rng) < 0.1
            batch = epoch.Batch(seen, actions, rewards, reached, *ends.float())
            states, returns, metrics = learner.update_actor(batch, torch.tensor(0.7))
            critic_metrics = learner.update_critic(states, returns, torch.tensor(0.7))
            numbers += [env_actions, states, returns, *metrics.values(), *critic_metrics.values()]
    networks = [network for network in vars(learner).values() if isinstance(network, FlatNetwork)]
    return numbers + [network.theta.detach() for network in networks]


@pytest.mark.parametrize("space", [CONTINUOUS, DISCRETE], ids=["gaussian", "categorical"])
@pytest.mark.parametrize("script", [step, epoch], ids=["step", "epoch"])
def test_compiled_and_eager_give_the_same_numbers(script, space, monkeypatch, capsys):
    eager, fast = learner_for(script, space), learner_for(script, space)
    compile_methods(fast, *METHODS[script])
    for expected, number in zip(play(eager), play(fast), strict=True):
        torch.testing.assert_close(number, expected, atol=1e-5, rtol=1e-5)
    assert capsys.readouterr().err == ""


def test_two_compiled_learners_do_not_meet():
    """Nothing guards compiled code against another learner's arguments, so that each must have its own."""
    learners = [learner_for(step, CONTINUOUS), learner_for(step, DISCRETE), learner_for(step, CONTINUOUS)]
    learners[2].critic.theta.data.add_(1.0)
    expected = [play(learner) for learner in (learner_for(step, CONTINUOUS), learner_for(step, DISCRETE))]
    for learner in learners:
        compile_methods(learner, "learn_and_act")
    for learner, numbers in zip(learners, expected, strict=False):
        for a, b in zip(play(learner), numbers, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (play(learners[2])[-1] - expected[0][-1]).abs().max() > 1e-3


def test_a_method_whose_results_are_not_the_compiled_codes_is_right_all_the_same():
    """Compiled code leaves out what it would return twice; its results are then not the method's as they stand."""
    total = torch.zeros(1)

    def method(numbers, pair):
        total.add_(numbers.sum())
        return total * 1, pair[1] * numbers, pair[1]

    def twice(numbers, pair):
        first, *rest = method(numbers, pair)
        return first, first, *rest

    for function in (method, twice):
        total.zero_()
        compiled = Compiled(function, failed=pytest.fail)
        for i in range(1, 4):
            *sums, product, same = compiled(torch.ones(2), (torch.zeros(2), torch.full((2,), float(i))))
            assert [float(value) for value in sums] == [2.0 * i] * len(sums)
            assert product.tolist() == same.tolist() == [i, i]


def test_many_runs_in_one_process_are_all_compiled():
    """torch.compile gives up on a function at its ninth variant, and by itself varies sizes from the second on."""
    for num_envs in range(2, 12):
        learner = learner_for(epoch, CONTINUOUS)
        compile_methods(learner, "act")
        learner.act(torch.randn(num_envs, 3), torch.randn(num_envs, 2))
        assert learner.act.fast != learner.act.method, "it is not compiled; standard error says why"


def test_arguments_are_not_kept():
    learner = learner_for(step, CONTINUOUS)
    compile_methods(learner, "learn_and_act")
    arguments = torch.randn(3), torch.randn(2), torch.randn(3), torch.zeros(4), torch.randn(2)
    for _ in range(2):
        learner.learn_and_act(*arguments)
    references = [weakref.ref(argument) for argument in arguments]
    del arguments
    gc.collect()
    assert not any(reference() is not None for reference in references)


def test_without_a_compiler_it_says_so_once_and_runs_on(capsys):
    eager, fallen_back = learner_for(epoch, CONTINUOUS), learner_for(epoch, CONTINUOUS)
    compile_methods(fallen_back, *METHODS[epoch])
    # Not by monkeypatch, which would leave PyTorch without the setting, and later tests without a compiler.
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}), fresh_cache():
        numbers = play(fallen_back)
    for a, b in zip(numbers, play(eager), strict=True):
        np.testing.assert_array_equal(a, b)
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not compiled, and slower: " in line


@pytest.mark.parametrize("script", [step, epoch], ids=["step", "epoch"])
def test_only_a_long_run_is_compiled(script, monkeypatch):
    compiled = []
    monkeypatch.setattr(script, "compile_methods", lambda learner, *names, quiet: compiled.append(names))
    for settings in ({"total_timesteps": 5000}, {"compile": False}):
        script.A2C(script.Config(**{"total_timesteps": 10**6} | settings), ObservationLayout(3), ActionMap(CONTINUOUS))
    assert not compiled
    script.A2C(script.Config(total_timesteps=10**6), ObservationLayout(3), ActionMap(CONTINUOUS))
    assert compiled == [tuple(METHODS[script])]
