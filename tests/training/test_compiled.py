"""Compiled and eager give the same numbers, and without a compiler a run goes on."""

import copy
import gc
import os
import random
import sys
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
import training.compiled
from environments import ActionMap
from networks import FlatNetwork, ObservationLayout
from training import compile_methods
from training.compiled import CODE, KEPT, Compiled

pytestmark = pytest.mark.slow

CONTINUOUS, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 4])
METHODS = {step: ["learn_and_act"], epoch: ["act", "update_actor", "update_critic"]}
QUIET = step.Config(quiet=True)


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
    eager, fast, loaded = (learner_for(script, space) for _ in range(3))
    for learner in (fast, loaded):
        compile_methods(learner, script.Config(quiet=True), *METHODS[script])
    numbers = play(fast)
    for expected, number in zip(play(eager), numbers, strict=True):
        torch.testing.assert_close(number, expected, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(Compiled, "_compile", lambda *args: pytest.fail("it was not kept"))
    for expected, number in zip(numbers, play(loaded), strict=True):
        torch.testing.assert_close(number, expected, atol=0, rtol=0, equal_nan=True)
    assert capsys.readouterr().err == ""


def test_two_compiled_learners_do_not_meet():
    """Nothing guards compiled code against another learner's arguments, so that each must have its own."""
    learners = [learner_for(step, CONTINUOUS), learner_for(step, DISCRETE), learner_for(step, CONTINUOUS)]
    learners[2].critic.theta.data.add_(1.0)
    expected = [play(learner) for learner in (learner_for(step, CONTINUOUS), learner_for(step, DISCRETE))]
    for learner in learners:
        compile_methods(learner, QUIET, "learn_and_act")
    for learner, numbers in zip(learners, expected, strict=False):
        for a, b in zip(play(learner), numbers, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert (play(learners[2])[-1] - expected[0][-1]).abs().max() > 1e-3


class Counting:
    """A learner that changes a tensor of its own, and returns one twice, an argument and a dictionary."""

    factor = 1.0

    def __init__(self):
        self.total = torch.zeros(1)

    def method(self, numbers, pair):
        self.total.add_(numbers.sum())
        return self.total * self.factor, self.total * self.factor, pair[1], {"product": pair[1] * numbers}


def check_counting(learner):
    before = float(learner.total)
    for i in range(1, 4):
        first, second, same, named = learner.method(torch.ones(2), (torch.zeros(2), torch.full((2,), float(i))))
        assert float(first) == float(second) == (before + 2.0 * i) * learner.factor
        assert named["product"].tolist() == same.tolist() == [i, i]


def compiled_counting(monkeypatch, expected, **attributes):
    """A learner with a compiled method, which is loaded or compiled as `expected`, and works."""
    made = []
    for name in ("_load", "_compile"):
        original = getattr(Compiled, name)

        def make(self, *args, name=name, original=original):
            result = original(self, *args)
            random.random(), torch.rand(1)  # as a compiler may
            made.append(name)
            return result

        monkeypatch.setattr(Compiled, name, make)
    learner = Counting()
    vars(learner).update(attributes)
    compile_methods(learner, QUIET, "method")
    random.seed(0), torch.manual_seed(0)
    drawn = random.random(), torch.rand(1)
    random.seed(0), torch.manual_seed(0)
    check_counting(learner)
    assert (random.random(), torch.rand(1)) == drawn
    monkeypatch.undo()
    assert made[-1] == expected
    return learner


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.compiled, "CACHE", tmp_path / "cache")
        yield tmp_path / "cache"


def test_what_is_compiled_is_kept(cache, monkeypatch):
    compiled_counting(monkeypatch, "_compile")
    (directory,) = cache.iterdir()
    compiled_counting(monkeypatch, "_load")
    compiled_counting(monkeypatch, "_compile", factor=2.0)  # a guard of what is kept fails
    assert [*cache.iterdir()] == [directory]
    compiled_counting(monkeypatch, "_load", factor=2.0)


@pytest.mark.parametrize("damage", ["function", "library"])
def test_what_is_damaged_is_compiled_anew(cache, monkeypatch, damage):
    factor = {"function": 3.0, "library": 4.0}[damage]  # PyTorch compiles the same code only once
    compiled_counting(monkeypatch, "_compile", factor=factor)
    (directory,) = cache.iterdir()
    path = directory / CODE if damage == "function" else next(directory.rglob("*.so"))
    damaged = path.read_bytes()[:-100] + bytes(100)
    path.unlink()  # not in place: this process uses the library
    path.write_bytes(damaged)
    compiled_counting(monkeypatch, "_compile", factor=factor)
    compiled_counting(monkeypatch, "_load", factor=factor)


def test_only_settings_of_the_algorithm_and_the_sources_tell_what_is_kept_apart(cache, monkeypatch, tmp_path):
    def directory(**settings):
        learner = Counting()
        compile_methods(learner, step.Config(**settings), "method")
        return learner.method._directory([])

    expected = directory()
    assert directory(seed=3, total_timesteps=5, env="CartPole-v1", run_dir=tmp_path, quiet=True) == expected
    assert directory(gamma=0.9) != expected
    assert directory(hidden_sizes=(3,)) != expected
    (tmp_path / "my_layers.py").write_text("WIDTH = 1\n")
    os.utime(tmp_path / "my_layers.py", (1, 1))
    monkeypatch.syspath_prepend(tmp_path)
    __import__("my_layers")
    with_layers = directory()
    (tmp_path / "my_layers.py").write_text("WIDTH = 2\n")
    with pytest.raises(OSError, match="was changed after this process has started"):
        directory()
    os.utime(tmp_path / "my_layers.py", (1, 1))  # as a process that starts now would see it
    assert len({expected, with_layers, directory()}) == 3


def test_only_the_last_ones_are_kept(cache, monkeypatch):
    cache.mkdir()
    for i in range(KEPT):
        (cache / str(i)).mkdir()
        os.utime(cache / str(i), (i, i))
    compiled_counting(monkeypatch, "_compile")
    assert len([*cache.iterdir()]) == KEPT
    assert not (cache / "0").exists()


def test_nothing_can_be_kept(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(training.compiled, "CACHE", tmp_path / "file" / "cache")
    learner = Counting()
    compile_methods(learner, QUIET, "method")
    check_counting(learner)
    assert learner.method.fast


class Pair(NamedTuple):
    first: torch.Tensor
    second: list


FACTOR = 2.0


class Mixed:
    """A learner whose method returns an argument and other things beside what it has computed, and uses a global."""

    weights = torch.arange(4.0).view(2, 2)

    def method(self, numbers, argument, scale=1.0):
        hidden = (self.weights @ numbers).tanh() * FACTOR * scale
        return Pair(hidden, [hidden.square().sum(), argument, None, 3])


def test_results_are_the_callers(cache, monkeypatch, capsys):
    """Compiled code has results in the same memory in every call; arguments among them are elsewhere."""
    learner, eager = Mixed(), Mixed()
    compile_methods(learner, QUIET, "method")
    inputs = [(torch.full((2,), float(i)), torch.full((1,), float(i))) for i in range(6)]
    kept, expected = ([one.method(*given) for given in inputs] for one in (learner, eager))
    for result, other in zip(kept, expected, strict=True):
        assert type(result) is Pair
        assert result.second[2:] == [None, 3]
        torch.testing.assert_close([result.first, *result.second[:2]], [other.first, *other.second[:2]])
    assert learner.method.fast
    torch.testing.assert_close(learner.method(*inputs[1], scale=2.0).first, 2 * expected[1].first)
    copied = copy.deepcopy(learner)
    assert copied.method.__self__ is copied
    torch.testing.assert_close(copied.method(*inputs[1]).first, expected[1].first)
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3.0)
    results = [learner.method(*inputs[1]).first for _ in range(100)]
    torch.testing.assert_close(results[-1], expected[1].first * 1.5)
    assert "has changed since the first call" in capsys.readouterr().err
    learner = Mixed()
    compile_methods(learner, QUIET, "method")
    torch.testing.assert_close(learner.method(*inputs[1]).first, expected[1].first * 1.5)


def test_other_shapes_are_computed_uncompiled(cache, monkeypatch):
    """Code for another shape would read memory that is not the tensor's."""
    learner = compiled_counting(monkeypatch, "_compile")
    for numbers in (torch.ones(3), torch.ones(4)[::2], torch.ones(2, dtype=torch.float64)):
        before = float(learner.total)
        total, *_ = learner.method(numbers, (numbers, numbers))
        assert float(total) == before + len(numbers)
    check_counting(learner)


def test_arguments_are_not_kept():
    learner = learner_for(step, CONTINUOUS)
    compile_methods(learner, QUIET, "learn_and_act")
    arguments = torch.randn(3), torch.randn(2), torch.randn(3), torch.zeros(4), torch.randn(2)
    for _ in range(2):
        learner.learn_and_act(*arguments)
    references = [weakref.ref(argument) for argument in arguments]
    del arguments
    gc.collect()
    assert not any(reference() is not None for reference in references)


def test_without_a_compiler_it_says_so_once_and_runs_on(cache, capsys):
    eager, fallen_back = learner_for(epoch, CONTINUOUS), learner_for(epoch, CONTINUOUS)
    compile_methods(fallen_back, epoch.Config(quiet=True), *METHODS[epoch])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compiled, "OPTIONS", Compiled.OPTIONS | {"cpp.cxx": ("no-such-compiler",)})
        numbers = play(fallen_back)
    for a, b in zip(numbers, play(eager), strict=True):
        np.testing.assert_array_equal(a, b)
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not compiled, and slower: " in line


@pytest.mark.parametrize("script", [step, epoch], ids=["step", "epoch"])
def test_only_a_long_run_is_compiled(script, monkeypatch):
    compiled = []
    monkeypatch.setattr(script, "compile_methods", lambda learner, config, *names: compiled.append(names))
    for settings in ({"total_timesteps": 5000}, {"compile": False}):
        script.A2C(script.Config(**{"total_timesteps": 10**6} | settings), ObservationLayout(3), ActionMap(CONTINUOUS))
    assert not compiled
    script.A2C(script.Config(total_timesteps=10**6), ObservationLayout(3), ActionMap(CONTINUOUS))
    assert compiled == [tuple(METHODS[script])]
