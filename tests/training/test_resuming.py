"""Resuming from Python and from the first second: what is compared, what starts again."""

import json
import signal
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from test_resume import FORK, assert_same, numbers

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
import training.run
from training import TrainingError, UsageError, evaluate, load_policy
from training.checkpoint import load_checkpoint

SCRIPTS = pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])


def first(script, tmp_path, **settings):
    default = {"env": "CartPole-v1", "total_timesteps": 512, "quiet": True, "img_dir": tmp_path}
    return script.train(script.Config(**default | {"run_dir": tmp_path / "run"} | settings))


@SCRIPTS
def test_the_directory_is_enough(script, tmp_path):
    first(script, tmp_path, gamma=0.95, hidden_sizes=(32,), env_kwargs={"sutton_barto_reward": True})
    run = script.train(script.Config(resume=str(tmp_path / "run"), total_timesteps=1024, env="CartPole-v1"))
    assert (run.timestep, run.config.gamma, run.config.hidden_sizes, run.config.quiet) == (1024, 0.95, (32,), True)
    assert run.config.env_kwargs == {"sutton_barto_reward": True}


@SCRIPTS
@pytest.mark.parametrize(
    "change",
    [{"gamma": 0.5}, {"gamma": 0.995}, {"seed": 9}, {"env": "Acrobot-v1"}, {"layer_norm": False}, {"env_kwargs": {}}],
    ids=str,
)
def test_a_setting_that_differs_is_refused(script, change, tmp_path):
    """Also one that is the default, and not what the run was begun with."""
    first(script, tmp_path, gamma=0.95, env_kwargs={"sutton_barto_reward": True})
    flag = next(iter(change)).replace("_", "-")
    with pytest.raises(UsageError, match=f"--{flag} .*cannot be changed when a run is resumed; remove it"):
        script.train(script.Config(resume=tmp_path / "run", total_timesteps=1024, **change))
    assert load_checkpoint(tmp_path / "run")["timestep"] == 512


def test_a_number_of_timesteps_is_taken_though_it_is_the_default(tmp_path):
    config = epoch.Config(resume=tmp_path, total_timesteps=epoch.Config.total_timesteps)
    assert config.given == {"resume", "total_timesteps"}


@pytest.mark.slow
@SCRIPTS
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(script, tmp_path, capsys):
    settings = {"env": "CartPole-v1", "total_timesteps": 4096, "img_dir": tmp_path}
    config = script.Config(run_dir=tmp_path / "run", **settings)
    process = FORK.Process(target=script.train, args=(config,))
    process.start()
    log = tmp_path / "run" / "updates.csv"
    while not log.exists() or log.read_text().count("\n") < 2:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    script.train(script.Config(resume=tmp_path / "run"))
    assert "there is no checkpoint yet: the run starts again" in capsys.readouterr().out
    script.train(script.Config(run_dir=tmp_path / "alone", quiet=True, **settings))
    assert_same(numbers(tmp_path / "run"), numbers(tmp_path / "alone"))


@pytest.mark.slow
@SCRIPTS
def test_a_checkpoint_is_written_every_minute_and_moves_no_number(script, tmp_path, monkeypatch):
    alone = first(script, tmp_path, run_dir=tmp_path / "alone")
    monkeypatch.setattr(training.run, "SAVE_INTERVAL", 0.0)
    saves, save = [], training.run.save_checkpoint
    monkeypatch.setattr(training.run, "save_checkpoint", lambda *args: saves.append(args) or save(*args))
    often = first(script, tmp_path)
    assert len(saves) >= (512 if script is step else 1)
    assert_same(numbers(often.directory), numbers(alone.directory))


class Endless(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.25, False, False, {}


@pytest.mark.slow
@SCRIPTS
def test_fewer_timesteps_than_were_done_are_refused(script, tmp_path):
    script.train(script.Config(env="CartPole-v1", total_timesteps=1024, run_dir=tmp_path / "run", img_dir=tmp_path))
    with pytest.raises(UsageError, match="--total-timesteps 512 is less than the 1024 that the run has done already"):
        script.train(script.Config(resume=tmp_path / "run", total_timesteps=512))
    script.train(script.Config(resume=tmp_path / "run"))  # finished: nothing is left to do


@SCRIPTS
def test_where_no_episode_ends_the_reward_of_a_step_is_logged(script, tmp_path, capsys):
    seen = []
    config = script.Config(env="Endless", total_timesteps=2048, run_dir=tmp_path / "run", img_dir=tmp_path)
    run = script.train(config, Endless, lambda run, scalars: seen.append(scalars["charts/mean_reward"]))
    assert set(seen) == {0.25}
    header, *rows = [line.split(",") for line in (run.directory / "updates.csv").read_text().splitlines()]
    assert {row[header.index("mean_reward")] for row in rows} == {"0.25"}
    assert "mean reward per step 0.25" in capsys.readouterr().out


@pytest.mark.slow
def test_arguments_for_the_environment_are_kept_and_used(script, tmp_path):
    """By the script and by evaluate.py: with this reward, every step but the last one counts 0."""
    arguments = json.dumps({"sutton_barto_reward": True})
    flags = ("--env", "CartPole-v1", "--total-timesteps", 512, "--run-dir", "run", "--env-kwargs", arguments)
    result = script("a2c_algorithm_epoch_update.py", *flags)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["env_kwargs"] == json.loads(arguments)
    result = script("evaluate.py", "run", "--episodes", 2)
    assert json.loads(result.stdout)["mean_return"] == -1.0
    policy, env_id = load_policy(tmp_path / "run")
    assert evaluate(policy, env_id, episodes=2, seed=0)["mean_return"] == -1.0
    assert evaluate(policy, env_id, episodes=2, seed=0, env_kwargs={})["mean_return"] > 0
    for wrong, words in (("5", "must be a JSON object"), ('{"color": 1}', "unexpected keyword argument 'color'")):
        result = script("a2c_algorithm_epoch_update.py", "--env", "CartPole-v1", "--env-kwargs", wrong)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert words in result.stderr


@SCRIPTS
def test_an_environment_that_ends_the_process_ends_the_run_with_a_line(script, tmp_path):
    class Exits(Endless):
        def step(self, action):
            sys.exit("no license")

    with pytest.raises(TrainingError, match="at timestep 0: SystemExit: no license"):
        script.train(script.Config(env="Exits", run_dir=tmp_path / "run", img_dir=tmp_path), Exits)


def test_why_the_environments_are_new_is_said(tmp_path, capsys):
    class Odd(Endless):
        def __init__(self):
            self.odd = {1, 2}

    config = epoch.Config(env="Odd", total_timesteps=512, run_dir=tmp_path / "run", img_dir=tmp_path)
    epoch.train(config, Odd)
    epoch.train(epoch.Config(resume=tmp_path / "run", total_timesteps=1024), Odd)
    assert "in new episodes, since their state cannot be read: it holds builtins.set" in capsys.readouterr().out
