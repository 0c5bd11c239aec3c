"""Evaluations during a run: the best policy is kept, and no number of the run changes."""

import csv
import multiprocessing
import os
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import EPOCH, EVALUATE, PROJECT, STEP

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
import training.evaluation
from training import evaluate, load_policy

SCRIPTS = pytest.mark.parametrize("script", [epoch, step], ids=["epoch", "step"])
SEED = 2_000_000  # of evaluations, above the seed of the run


class Global(gym.Wrapper):
    """Draws its rewards from a global generator."""

    def step(self, action):
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, np.random.rand(), terminated, truncated, info  # noqa: NPY002


def make_global():
    return Global(gym.make("CartPole-v1"))


def train(script, tmp_path, name, env_fn=None, **settings):
    settings = {"env": "CartPole-v1", "total_timesteps": 6_144, "quiet": True} | settings
    return script.train(script.Config(run_dir=tmp_path / name, img_dir=tmp_path, **settings), env_fn=env_fn)


def rows(run, name="evaluations.csv"):
    with (run / name).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("wall_time", "timesteps_per_second")} for row in rows]


def parameters(run):
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    return {name: state[name] for name in ("actor", "critic", "obs_normalizer")}


def assert_equal(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.slow
@SCRIPTS
def test_no_number_of_the_run_changes_and_the_best_policy_is_kept(script, tmp_path):
    alone = train(script, tmp_path, "alone", make_global).directory
    run = train(script, tmp_path, "run", make_global, eval_interval=2_000, eval_episodes=5).directory
    assert_equal(parameters(run), parameters(alone))
    assert all(rows(run, name) == rows(alone, name) for name in ("episodes.csv", "updates.csv"))
    assert not (alone / "best.pt").exists()
    assert rows(alone) == []
    # The third is at the end.
    timesteps, scores = zip(*((int(row["timestep"]), float(row["mean_return"])) for row in rows(run)), strict=True)
    assert timesteps == {"epoch": (2_048, 4_096, 6_144), "step": (2_000, 4_000, 6_000, 6_144)}[script.Config.script]
    policy, env = load_policy(str(run), best=True)
    score = evaluate(policy, env, 5, SEED, env_fn=make_global, num_envs=20 if script is epoch else 1)
    assert score["mean_return"] == pytest.approx(max(scores))
    state = torch.load(run / "best.pt", weights_only=True)
    assert (state["timestep"], state["mean_return"]) == (timesteps[np.argmax(scores)], pytest.approx(max(scores)))


@pytest.mark.slow
@SCRIPTS
def test_a_killed_and_resumed_run_has_the_same_evaluations(script, tmp_path):
    settings = {"eval_interval": 2_500, "eval_episodes": 3, "checkpoint_interval": 1_024}
    whole = train(script, tmp_path, "whole", **settings).directory
    broken = tmp_path / "broken"
    process = multiprocessing.get_context("fork").Process(
        target=train, args=(script, tmp_path, "broken"), kwargs=settings
    )
    process.start()
    log = broken / "evaluations.csv"
    while not log.exists() or log.read_text().count("\n") < 2:  # written with the checkpoint after the evaluation
        time.sleep(0.001)
    time.sleep(0.1)
    process.kill()
    process.join()
    (broken / "best.pt").write_bytes(b"")  # of a later time than the checkpoint, or killed while it was written
    script.train(script.Config(resume=broken, img_dir=tmp_path, quiet=True))
    assert rows(broken) == rows(whole)
    assert_equal(parameters(broken), parameters(whole))
    best, expected = (torch.load(run / "best.pt", weights_only=True) for run in (broken, whole))
    for name in ("actor", "obs_normalizer", "timestep", "mean_return"):
        assert_equal(best[name], expected[name])


@pytest.mark.slow
@SCRIPTS
def test_a_run_ends_at_its_target(script, tmp_path):
    run = train(script, tmp_path, "run", eval_interval=1_000, target_return=5.0, total_timesteps=50_000)
    assert run.timestep < 3_000
    assert (run.exit_status, len(rows(run.directory))) == (0, 1)
    assert (run.directory / "reward.png").exists()


@pytest.mark.slow
@SCRIPTS
def test_a_run_that_has_reached_its_target_does_not_go_on(script, tmp_path, capsys):
    settings = {"eval_interval": 1_000, "eval_episodes": 1, "target_return": 5.0}
    run = train(script, tmp_path, "run", total_timesteps=1_500, **settings)
    again = script.train(script.Config(resume=run.directory, img_dir=tmp_path, quiet=False))
    assert (again.timestep, len(rows(run.directory))) == (run.timestep, 1)
    assert "--target-return 5 is reached at timestep" in capsys.readouterr().out


class Endless(gym.Wrapper):
    """Episodes that end in training only, after 50 steps; says when it is evaluated."""

    evaluated = None

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        self.training = not Endless.evaluated
        return self.env.reset(seed=seed)

    def step(self, action):
        self.steps += 1
        if not self.training and self.steps == 100:
            os.kill(os.getpid(), signal.SIGTERM)
        observation = self.env.observation_space.sample() / 1e30
        return observation, 1.0, self.training and self.steps == 50, False, {}


@pytest.mark.slow
@SCRIPTS
def test_a_signal_ends_an_evaluation(script, tmp_path, monkeypatch):
    def make():
        return Endless(gym.make("CartPole-v1").unwrapped)

    monkeypatch.setattr(training.evaluation, "evaluate", lambda *args, **options: evaluated(*args, **options))

    def evaluated(*args, **options):
        Endless.evaluated = True
        try:
            return evaluate(*args, **options)
        finally:
            Endless.evaluated = False

    run = train(
        script, tmp_path, "run", make, eval_interval=1_000, eval_episodes=1, total_timesteps=5_000, env="Endless"
    )
    assert run.exit_status == 128 + signal.SIGTERM
    assert (1_000 <= run.timestep < 1_200, rows(run.directory)) == (True, [])
    state = torch.load(run.directory / "checkpoint.pt", weights_only=True)
    assert (state["timestep"], state["evaluations"]["due_at"]) == (run.timestep, 1_000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda path: path.read_bytes()[:-100], "best.pt is damaged"),
        (lambda path: (PROJECT / "policies" / "Pendulum-v0" / "checkpoint.pt").read_bytes(), "was written by another"),
    ],
)
def test_a_best_policy_that_cannot_be_used_gets_a_line(content, message, forked, tmp_path):
    run = train(step, tmp_path, "run", total_timesteps=1_000, eval_interval=1_000, eval_episodes=1).directory
    (run / "best.pt").write_bytes(content(run / "best.pt"))
    result = forked(EVALUATE, "run", "--best")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert message in result.stderr
    assert "play it without --best" in result.stderr


class OnlyOne(gym.Wrapper):
    """An environment of which there can be only one."""

    open = 0

    def __init__(self):
        if OnlyOne.open:
            raise RuntimeError("the robot is in use")
        super().__init__(gym.make("CartPole-v1"))
        OnlyOne.open += 1

    def close(self):
        OnlyOne.open -= 1
        super().close()


@pytest.mark.slow
def test_an_environment_of_which_there_can_be_only_one_is_trained_on_without_evaluations(tmp_path, capsys):
    run = train(step, tmp_path, "run", OnlyOne, eval_interval=500, total_timesteps=2_000, env="OnlyOne")
    assert (run.timestep, run.exit_status, rows(run.directory)) == (2_000, 0, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("evaluating failed at timestep 1000, training goes on without: the env_fn of OnlyOne failed")
    assert line.endswith("the robot is in use")


@pytest.mark.slow
def test_the_commands(forked, tmp_path):
    flags = ["--env", "CartPole-v1", "--total-timesteps", 2_048, "--run-dir", "run", "--eval-interval", 1_000]
    result = forked(EPOCH, *flags)
    assert result.returncode == 0, result.stderr
    assert "evaluation " in result.stdout
    assert "evaluate.py run --best" in result.stdout
    assert forked(EVALUATE, "run", "--best", "--episodes", 2).returncode == 0
    result = forked(EPOCH, "--resume", "run", "--total-timesteps", 4_096)
    assert "--total-timesteps was 2048 and is 4096 now" in result.stdout
    assert "is at 50% of its first value, not at 0%" in result.stdout
    assert forked(STEP, "--total-timesteps", 1_000, "--run-dir", "other", "--env", "CartPole-v1").returncode == 0
    result = forked(EVALUATE, "other", "--best")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "best.pt" in result.stderr
    assert "--eval-interval" in result.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval-interval", "-1"], "--eval-interval -1 must not be negative"),
        (["--eval-interval", "1000", "--eval-episodes", "0"], "--eval-episodes 0 must be at least 1"),
        (["--target-return", "100"], "--target-return 100.0 needs --eval-interval"),
        (["--eval-interval", "1000", "--target-return", "nan"], "--target-return nan must be finite"),
    ],
)
@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_bad_settings_get_a_line_and_write_nothing(forked, tmp_path, name, flags, message):
    result = forked(name, *flags, "--run-dir", "run")
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert message in result.stderr
    assert not (tmp_path / "run").exists()
