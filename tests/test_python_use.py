"""From Python: a user's own environment and callback, and the examples of the documentation as they stand there."""

import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import PROJECT

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from environments import UsageError
from training import evaluate, load_policy
from training.checkpoint import load_checkpoint
from training.cli import parse
from training.export import export_policy

SCRIPTS = pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])


def parameters(run):
    return torch.load(run.directory / "checkpoint.pt", weights_only=True)["actor"]


def config(script, tmp_path, name, **settings):
    settings = {"total_timesteps": 2048, "env": "CartPole-v1", "quiet": True} | settings
    return script.Config(run_dir=tmp_path / name, img_dir=tmp_path, **settings)


@pytest.mark.parametrize("wrong", [step.Config(), "CartPole-v1"], ids=["of the other script", "a name"])
def test_a_config_of_another_kind_is_refused(wrong):
    with pytest.raises(UsageError, match="train takes the Config of a2c_algorithm_epoch_update, not "):
        epoch.train(wrong)


@pytest.mark.slow
@SCRIPTS
def test_a_callback_sees_the_run_and_leaves_it_as_it_is(script, tmp_path):
    seen = []

    def watch(run, scalars):
        seen.append((run.timestep, run.recent_returns[-1], scalars["losses/value_loss"], scalars["charts/SPS"]))
        score = evaluate(run.policy, "CartPole-v1", episodes=2, seed=7, stochastic=True)
        assert 8 <= score["mean_return"] <= 500

    watched = script.train(config(script, tmp_path, "watched"), callback=watch)
    alone = script.train(config(script, tmp_path, "alone"))
    timesteps = [timestep for timestep, *_ in seen]
    assert timesteps == sorted(set(timesteps))
    assert (len(timesteps) >= 2, timesteps[-1]) == (True, 2048)
    assert all(type(number) is float for _, *numbers in seen for number in numbers)
    a, b = parameters(watched), parameters(alone)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@SCRIPTS
def test_a_callback_stops_a_run_which_can_be_resumed(script, tmp_path):
    stopped = script.train(config(script, tmp_path, "run"), callback=lambda run, scalars: run.stop())
    assert 1000 <= stopped.timestep < 2000
    assert stopped.exit_status == 0
    assert load_checkpoint(stopped.directory)["timestep"] == stopped.timestep
    assert (stopped.directory / "reward.png").exists()
    resumed = script.train(parse(script.Config, ["--resume", str(stopped.directory), "--img-dir", str(tmp_path)]))
    alone = script.train(config(script, tmp_path, "alone"))
    a, b = parameters(resumed), parameters(alone)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@SCRIPTS
def test_what_a_callback_raises_reaches_its_owner_and_the_run_is_saved(script, tmp_path):
    """A pruned trial, for example, is no failure of the run, which goes on when it is resumed."""

    class PrunedError(Exception):
        pass

    def prune(run, scalars):
        raise PrunedError(run.timestep)

    with pytest.raises(PrunedError) as pruned:
        script.train(config(script, tmp_path, "run"), callback=prune)
    run = script.train(script.Config(resume=tmp_path / "run"))
    alone = script.train(config(script, tmp_path, "alone"))
    assert (load_checkpoint(tmp_path / "run")["timestep"], run.timestep) == (2048, 2048)
    assert 1000 <= pruned.value.args[0] < 2048
    a, b = parameters(run), parameters(alone)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@SCRIPTS
def test_somebody_elses_alarm_is_left_alone(script, tmp_path):
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    run = script.train(config(script, tmp_path, "run", checkpoint_interval=64))
    signal.signal(signal.SIGALRM, before)
    assert (rung, run.exit_status, run.timestep) == ([True], 0, 2048)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/environments.md"])
def test_the_examples_of_a_page_run(page, tmp_path):
    examples = re.findall(r"```python\n(.*?)```", (PROJECT / page).read_text(), re.DOTALL)
    assert examples
    export_policy(load_policy(PROJECT / "policies" / "Pendulum-v0")[0], tmp_path / "policy.onnx")
    for example in examples:
        environment = os.environ | {"PYTHONPATH": str(PROJECT)}
        command = [sys.executable, "-W", "error", "-c", example]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=200)
