"""The comparison: trains what is missing, keeps what is done, and draws the same figures from the same results."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import PROJECT

import compare
from environments import UsageError
from training.checkpoint import load_checkpoint
from training.comparison import COLUMNS, CURVES, Results, interval, iqm, probability_of_improvement, solved
from training.experiments import POINTS, Task, write_csv

pytestmark = pytest.mark.slow

COMPARE = "compare.py"


def written(folder, curves=("step", "epoch"), seeds=4, env="Pendulum-v0"):
    """Results as a comparison leaves them, of made-up numbers."""
    rng = np.random.default_rng(0)
    run_rows, points, episodes = [], [], []
    for curve, seed in itertools.product(curves, range(seeds)):
        returns = np.linspace(-1200, -150, POINTS) + rng.normal(0, 20, POINTS)
        score = [f"{returns[-1]:.2f}", "50.00", "-300.00"]
        settings = CURVES[curve].flags
        run_rows.append([curve, seed, 1000, *score, f"{rng.uniform(1, 2):.1f}", "abc", settings])
        for i, value in enumerate(returns, 1):
            points.append([curve, seed, 20 * i, f"{i / 10:.2f}", f"{value:.2f}" if i > 1 else "nan"])
        if seed == 0:
            episodes += [[curve, 20 * i, value] for i, value in enumerate(returns, 1)]
    run_rows.append(["random", 0, 1000, "-1230.00", "100.00", "-1500.00", "0", "abc", ""])
    for part, columns, rows in zip(("", "_curves", "_episodes"), COLUMNS, (run_rows, points, episodes), strict=True):
        named = [dict(zip(columns, row, strict=True)) for row in rows]
        write_csv(folder / f"compare_{env}{part}.csv", columns, named)
    return folder


def test_two_modes_are_trained_scored_and_drawn_and_not_again(script, tmp_path):
    flags = ["--env", "CartPole-v1", "--total-timesteps", 600, "--seeds", 2, "--workers", 2]
    result = script(COMPARE, *flags)
    assert result.returncode == 0, result.stderr
    pictures = {path.name for path in (tmp_path / "img").iterdir()}
    assert pictures == {"compare_CartPole-v1.png", "A2C_CartPole-v1.png", "A2C_CartPole-v1_epoch.png"}
    files = {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    results = Results(tmp_path / "results", "CartPole-v1")
    assert [(row["curve"], row["seed"]) for row in results.runs] == [
        *itertools.product(("step", "epoch"), "01"),
        ("random", "0"),
    ]
    assert 8 < results.random_return < 60
    timesteps, seconds, returns = results.history("step")
    assert (timesteps[0], timesteps[-1], returns.shape) == (12, 600, (2, POINTS))
    assert (np.diff(seconds, axis=1) >= 0).all()
    run = tmp_path / Task("step", "CartPole-v1", 600, "", 1).directory
    log = [row.split(",") for row in (run / "episodes.csv").read_text().splitlines()[1:]]
    assert returns[1, -1] == pytest.approx(np.mean([float(row[1]) for row in log[-20:]]), abs=0.01)
    score = script("evaluate.py", run, "--episodes", 100, "--seed", 1001).stdout
    assert results.scores("step")[1] == pytest.approx(json.loads(score)["mean_return"], abs=0.06)
    table = result.stdout

    third = script(COMPARE, *flags[:-4], "--seeds", 3, "--curves", "epoch")  # one more seed of one curve
    assert third.returncode == 2  # which leaves the other without it
    assert "has no seed 2 of step; python compare.py --env CartPole-v1 --curves step" in third.stderr
    for path, content in files.items():
        path.write_bytes(content)
    again = script(COMPARE, *flags)
    assert again.stdout == table[table.index("\nCartPole") :]
    assert {path: path.read_bytes() for path in (tmp_path / "results").iterdir()} == files


def test_a_crashed_run_is_reported_and_tried_again(forked, tmp_path):
    (tmp_path / "mine.py").write_text(
        "import gymnasium as gym, numpy as np, pathlib\n"
        "class Mine(gym.Env):\n"
        "    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        super().reset(seed=seed)\n"
        "        self.t = 0\n"
        "        if seed == 1 and not pathlib.Path('mended').exists():\n"
        "            raise ValueError('the motor is on fire')\n"
        "        return np.zeros(2, np.float32), {}\n"
        "    def step(self, action):\n"
        "        self.t += 1\n"
        "        return np.zeros(2, np.float32), 1.0, self.t == 9, False, {}\n"
        "gym.register('Mine-v0', entry_point=Mine)\n"
    )
    flags = ["--env", "mine:Mine-v0", "--total-timesteps", 200, "--seeds", 2, "--curves", "step", "--workers", 1]
    result = forked(COMPARE, *flags)
    assert result.returncode == 1
    first, second = result.stderr.splitlines()
    assert "_seed1-" in first
    assert "the motor is on fire" in first
    assert second == "1 of 2 runs failed; the same command tries them again"
    assert Results(tmp_path / "results", "Mine-v0").seeds("step") == [0]
    (tmp_path / "mended").touch()
    result = forked(COMPARE, *flags)
    assert result.returncode == 0, result.stderr
    assert "1 of 1 runs" in result.stdout
    assert Results(tmp_path / "results", "Mine-v0").scores("step").tolist() == [9, 9]


def test_an_interrupted_comparison_goes_on_where_it_stopped(script, tmp_path):
    flags = ["--total-timesteps", "30000", "--seeds", "2", "--curves", "epoch", "--workers", "1"]
    process = subprocess.Popen([sys.executable, PROJECT / COMPARE, *flags], cwd=tmp_path, stderr=subprocess.PIPE)
    task = Task("epoch", "Pendulum-v0", 30_000, "", 0)
    while not (tmp_path / task.directory / "updates.csv").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    process.terminate()
    assert process.wait(60) == 143
    state = load_checkpoint(tmp_path / task.directory)
    assert 0 < state["timestep"] < 30_000
    events = len(list((tmp_path / task.directory).glob("events*")))
    result = script(COMPARE, *flags)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / task.directory).glob("events*"))) == events + 1  # resumed, not begun anew
    assert Results(tmp_path / "results", "Pendulum-v0").seeds("epoch") == [0, 1]


def test_the_same_results_give_the_same_pictures(forked, tmp_path):
    written(tmp_path / "results", tuple(CURVES))
    written(tmp_path / "results", env="Mine-v3")  # which nobody has registered: no threshold
    for folder in ("a", "b"):
        result = forked(COMPARE, "--from-results", "--img-dir", folder)
        assert result.returncode == 0, result.stderr
        assert "epoch, no GAE | `--gae-lambda 0` |" in result.stdout
    pictures = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert pictures == sorted(
        name.format(env)
        for env in ("Pendulum-v0", "Mine-v3")
        for name in ("compare_{}.png", "A2C_{}.png", "A2C_{}_epoch.png")
    )
    for name in pictures:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_curves_of_a_persons_own(forked, tmp_path):
    flags = ["--env", "CartPole-v1", "--total-timesteps", 600, "--seeds", 2, "--workers", 2, "--curves", "epoch"]
    own = ["--curve", "small batches: --num-envs 2 --sample-size 8", "--curve", "slow: step --actor-lr 1e-5"]
    result = forked(COMPARE, *flags, *own)
    assert result.returncode == 0, result.stderr
    assert "| small batches | `--num-envs 2 --sample-size 8` |" in result.stdout
    assert "| slow | `--actor-lr 1e-5` |" in result.stdout
    results = Results(tmp_path / "results", "CartPole-v1")
    assert results.curves == ["epoch", "small batches", "slow"]
    assert results.seeds("slow") == [0, 1]
    run = Task("step", "CartPole-v1", 600, "--actor-lr 1e-5", 1).directory
    assert (tmp_path / run / "checkpoint.pt").exists()
    files = {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    again = forked(COMPARE, *flags, *own)  # nothing is trained again
    assert again.stdout == result.stdout[result.stdout.index("\nCartPole") :]
    result = forked(COMPARE, *flags, "--curve", "slow: step --actor-lr 1e-6")
    assert result.returncode == 2
    assert "has it with step --actor-lr 1e-5; choose another name" in result.stderr
    result = forked(COMPARE, *flags, "--curve", "new: --actor-lrs 1")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "--actor-lrs" in result.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "results").iterdir()} == files


def edited(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("part", "old", "new", "message"),
    [
        ("", "mean_return", "score", r"compare_Pendulum-v0.csv has no column mean_return"),
        ("", "step,2,", "step,7,", r"has no seed 2 of step; python compare.py --env Pendulum-v0 --curves step"),
        ("", "epoch,0,", "magic,0,", r"line 6: magic is none of step, "),
        ("", "step,2,", "step,1,", "has no seed 2 of step"),
        ("", "step,2,1000,", "step,2,1001,", "holds runs of different timesteps"),
        ("", "random,0", "epoch,4", "has no seed 4 of step"),
        ("_curves", "step,1,40,", "step,1,forty,", r"_curves.csv, line 53: .*'forty'"),
        ("_curves", "step,1,40,", "step,3,40,", "has not the 50 points of seed 1 of step"),
        ("_curves", "epoch,3,1000,5.00", "epoch,3", "line 401, is broken"),
        ("", "epoch,3", 'epoch,"3', "compare_Pendulum-v0.csv is broken"),
    ],
)
def test_broken_results_are_refused_and_left_alone(tmp_path, part, old, new, message):
    path = written(tmp_path) / f"compare_Pendulum-v0{part}.csv"
    edited(path, old, new)
    before = path.read_bytes()
    with pytest.raises(UsageError, match=message) as refusal:
        compare.report(Results(tmp_path, "Pendulum-v0"), tmp_path)
    assert "\n" not in str(refusal.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--curves", "sideways"), "sideways"),
        (("--curve", "no flags"), '--curve "no flags" must be "name: --flags" or "name: step --flags"'),
        (("--curve", "a: b"), '--curve "a: b" must be'),
        (("--curve", "epoch: --gamma 0.9"), "epoch is the name of another curve"),
        (("--curve", "a: --gamma 0.9", "--curve", "a: --gamma 0.8"), "a is the name of another curve"),
        (("--curve", "a: --gamma 0.9", "--curve", "b: --gamma 0.9"), "has the settings of a; remove one"),
        (("--curve", "a: --gae-lambda 0"), "has the settings of epoch-no-gae; remove one"),
        (("--curve", "a: --seed 5"), "compare.py sets --seed for all curves; remove it"),
        (("--curve", "a: --total_timesteps=5"), "compare.py sets --total-timesteps for all curves; remove it"),
        (("--curve", "$a$: --gamma 0.9"), "a name has letters, digits, spaces, and"),
        (("--curve", "_a: --gamma 0.9"), "a name has letters, digits, spaces, and"),
        (("--curve", 'a: --reward-shaping "b'), "No closing quotation"),
        (("--seeds", "0"), "--seeds 0 must be at least 2"),
        (("--env", "Pendulum-v7"), "--env Pendulum-v7"),
        (("--total-timesteps", "5000"), "holds runs of 1000; choose that, or another folder"),
        (("--from-results", "--results", "nowhere"), "--results nowhere holds no compare_<env>.csv"),
    ],
)
def test_a_mistake_is_one_line(forked, tmp_path, flags, message):
    written(tmp_path / "results")
    result = forked(COMPARE, *flags)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert message in line


def test_runs_shorter_than_an_episode_are_drawn_without_curves(tmp_path):
    path = written(tmp_path) / "compare_Pendulum-v0_curves.csv"
    lines = [
        line if line.startswith("curve") else line.rpartition(",")[0] + ",nan" for line in path.read_text().split()
    ]
    path.write_text("\n".join(lines))
    compare.report(Results(tmp_path, "Pendulum-v0"), tmp_path)
    assert (tmp_path / "compare_Pendulum-v0.png").exists()


def test_each_task_has_a_directory_of_its_own():
    kwargs = [Task("epoch", "Pendulum-v0", 100, "", 0, f'{{"g": {g}}}') for g in (5, -5, 0.5)]
    flags = [
        Task("epoch", "Pendulum-v0", 100, flags, 0) for flags in ("--a 1 2", "--a 1-2", "--a 1", "--a -1", "x" * 300)
    ]
    assert len({task.directory for task in kwargs + flags}) == len(kwargs + flags)
    assert max(len(task.directory.name) for task in flags) < 150


def test_statistics():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(12, 3))
    np.testing.assert_allclose(iqm(values), np.sort(values, axis=0)[3:9].mean(axis=0))
    low, high = interval(values)
    assert ((low < iqm(values)) & (iqm(values) < high)).all()
    resampled = [np.sort(values[rng.integers(12, size=12)], axis=0)[3:9].mean(axis=0) for _ in range(20_000)]
    np.testing.assert_allclose([low, high], np.percentile(resampled, [2.5, 97.5], axis=0), atol=0.1)
    a, b = rng.integers(5, size=7), rng.integers(5, size=9)
    pairs = [(x > y) + 0.5 * (x == y) for x in a for y in b]
    assert probability_of_improvement(a, b) == pytest.approx(np.mean(pairs))


def test_when_a_threshold_is_reached(tmp_path):
    path = written(tmp_path, ("step",), seeds=2) / "compare_Pendulum-v0_curves.csv"
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines[1:], 1):
        curve, seed, timestep, seconds, _ = line.split(",")
        value = -100 if seed == "1" and int(timestep) in (300, 400) else -500
        lines[i] = f"{curve},{seed},{timestep},{seconds},{value}"
    path.write_text("\n".join(lines))
    results = Results(tmp_path, "Pendulum-v0")
    timesteps, seconds = solved(results, "step", -200.0)
    assert timesteps.tolist() == [np.inf, 300]
    assert seconds.tolist() == [np.inf, 1.5]
