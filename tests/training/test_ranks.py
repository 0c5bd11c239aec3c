"""Several ranks, as real processes that talk over loopback, learn what one process learns."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import EPOCH, PROJECT, STEP

pytestmark = pytest.mark.slow

PARTS = (".py", ".toml", "environments", "training")  # of which the scripts consist
# Trains in double precision, and makes sure at every checkpoint that all ranks have the same parameters.
DRIVER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(PROJECT)!r})
import torch
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
import a2c_algorithm_epoch_update as epoch
from training import Run
save = Run.save
def checked(run, **loop):
    mine = [part.state_dict() for part in run.parts.values()]
    theirs = run.ranks.all_gather_object(mine)
    for other in theirs:
        for a, b in zip(mine, other, strict=True):
            assert all(torch.equal(a[name], b[name]) or a[name].isnan().all() for name in a)
    save(run, **loop)
Run.save = checked
name, directory = sys.argv[1:]
size = dict(num_envs=16, sample_size=128, total_timesteps=1536, critic_updates=3, checkpoint_interval=512)
paths = dict(run_dir=Path(directory), img_dir=Path(directory), quiet=True)
epoch.train(epoch.Config(env=name, **size, **paths))
"""
# An environment that, on rank 1, dies, hangs, goes astray or raises after 750 steps, if told to.
FAULTY = """
import os
import signal
import time
import gymnasium as gym
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
import training.ranks
training.ranks.TIMEOUT = 5.0
steps = 0

class Faulty(CartPoleEnv):
    def step(self, action):
        global steps
        steps += 1
        observation, *rest = super().step(action)
        if steps > 750 and os.environ["RANK"] == "1":
            if os.environ.get("FAULT") == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            while os.environ.get("FAULT") == "hang":
                time.sleep(0.01)
            if os.environ.get("FAULT") == "nan":
                observation = observation * float("nan")
            if os.environ.get("FAULT") == "raise":
                raise ZeroDivisionError("of its own")
        return observation, *rest

gym.register("Faulty-v0", Faulty, max_episode_steps=500)
"""
FLAGS = ["--env", "faulty:Faulty-v0", "--num-envs", "8", "--sample-size", "64", "--checkpoint-interval", "640"]
FLAGS += ["--total-timesteps", "2560", "--no-compile"]


@pytest.fixture
def ranks(tmp_path):
    """Start ranks of a script by torchrun, and give the process back, or what came of it."""
    running = []

    def start(count, script, *args, **variables):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", count, "--master-port", port]
        process = subprocess.Popen(
            [*map(str, command), str(script), *map(str, args)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{tmp_path}:{PROJECT}", "OMP_NUM_THREADS": "1"} | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    yield start
    for process in running:
        process.kill()


def checkpoint(directory):
    return torch.load(directory / "checkpoint.pt", weights_only=True)


def parameters(directory):
    state = checkpoint(directory)
    parts = ("actor", "critic", "actor_optimizer", "critic_optimizer", "obs_normalizer", "reward_normalizer")
    return {f"{part} {name}": tensor for part in parts for name, tensor in state[part].items()}


def episodes(directory):
    return [line.split(",")[:3] for line in (directory / "episodes.csv").read_text().splitlines()]


def errors(text):
    return [line for line in text.splitlines() if ": error:" in line]


@pytest.mark.parametrize("name", ["Pendulum-v0", "CartPole-v1", "HalfCheetah-v4"])
def test_two_ranks_learn_what_one_process_learns(ranks, tmp_path, name):
    (tmp_path / "driver.py").write_text(DRIVER)
    alone = subprocess.run(
        [sys.executable, tmp_path / "driver.py", name, tmp_path / "alone"], capture_output=True, text=True, check=False
    )
    assert alone.returncode == 0, alone.stderr
    result = ranks(2, tmp_path / "driver.py", name, tmp_path / "two")
    assert result.returncode == 0, result.stderr
    expected, found = parameters(tmp_path / "alone"), parameters(tmp_path / "two")
    assert expected.keys() == found.keys()
    for key, tensor in expected.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(found[key], tensor, atol=1e-5, rtol=0, msg=key)
    assert episodes(tmp_path / "two") == episodes(tmp_path / "alone")
    if name == "CartPole-v1":
        assert len(episodes(tmp_path / "two")) > 20


def test_ranks_end_together_where_their_evaluations_differ(ranks, tmp_path):
    (tmp_path / "faulty.py").write_text(
        FAULTY.replace("training.ranks.TIMEOUT = 5.0", "").replace(
            "return observation, *rest", "return observation, float(os.environ['RANK']) + 1, *rest[1:]"
        )
    )
    flags = [*FLAGS, "--run-dir", "run", "--eval-interval", 1000, "--eval-episodes", 2, "--target-return"]
    # Rank 0 has a reward of 1 a step, rank 1 of 2.
    result = ranks(2, PROJECT / EPOCH, *flags, 0.5, "--quiet")
    assert (result.returncode, errors(result.stderr)) == (0, [])
    score = float((tmp_path / "run" / "evaluations.csv").read_text().splitlines()[1].split(",")[1])
    shutil.rmtree(tmp_path / "run")
    result = ranks(2, PROJECT / EPOCH, *flags, score + 1, "--quiet")
    assert (result.returncode, errors(result.stderr)) == (0, [])
    assert checkpoint(tmp_path / "run")["timestep"] > 1100


def test_ranks_go_on_where_they_were(ranks, tmp_path):
    """After one died: with as many ranks, to the bit; with another number, in new episodes."""
    (tmp_path / "faulty.py").write_text(FAULTY)
    whole = ranks(2, PROJECT / EPOCH, *FLAGS, "--run-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    died = ranks(2, PROJECT / EPOCH, *FLAGS, "--run-dir", "parts", FAULT="die")
    assert died.returncode != 0
    assert len(episodes(tmp_path / "parts")) < len(episodes(tmp_path / "whole"))
    rest = ranks(2, PROJECT / EPOCH, "--resume", "parts")
    assert rest.returncode == 0, rest.stderr
    assert "resumed at timestep 1280, the environments where they were" in rest.stdout
    for key, tensor in parameters(tmp_path / "whole").items():
        assert torch.equal(parameters(tmp_path / "parts")[key], tensor), key
    assert episodes(tmp_path / "parts") == episodes(tmp_path / "whole")
    more = ranks(4, PROJECT / EPOCH, "--resume", "parts", "--total-timesteps", 3200)
    assert more.returncode == 0, more.stderr
    assert "in new episodes, since there were 2 ranks" in more.stdout


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("die", ["rank 0", "rank 1 has ended, or does not answer"]),
        ("hang", ["rank 0", "rank 1 has ended, or does not answer"]),
        ("nan", ["rank 1", "an observation is not finite"]),
        ("raise", ["rank 1", "ZeroDivisionError: of its own"]),
    ],
)
def test_a_rank_that_fails_ends_the_job(ranks, tmp_path, fault, said):
    (tmp_path / "faulty.py").write_text(FAULTY)
    result = ranks(2, PROJECT / EPOCH, *FLAGS, "--run-dir", "run", FAULT=fault)
    assert result.returncode != 0
    lines = errors(result.stderr)
    assert any(all(words in line for words in said) for line in lines), result.stderr
    assert all("; the last checkpoint is run/checkpoint.pt" in line for line in lines)
    assert checkpoint(tmp_path / "run")["timestep"] == 1280
    for report in re.findall(r"all of it in (.*)\)", result.stderr):
        assert "ZeroDivisionError" in Path(report).read_text()
        Path(report).unlink()


def test_what_ranks_cannot_do(ranks, tmp_path):
    flags = ["--env", "CartPole-v1", "--num-envs", 3, "--sample-size", 33]
    slow = {"PET_MONITOR_INTERVAL": "5"}  # seconds; or torchrun ends the slower rank before it has said its line
    result = ranks(2, PROJECT / EPOCH, *flags, **slow)
    assert result.returncode != 0
    expected = "a2c_algorithm_epoch_update.py: error: --num-envs 3 must be a multiple of the 2 ranks"
    assert errors(result.stderr) == [expected] * 2
    assert len(re.findall(r"exitcode *: 2 ", result.stderr)) == 2
    result = ranks(2, PROJECT / STEP, **slow)
    assert result.returncode != 0
    assert len(errors(result.stderr)) == 2
    assert all("the step update is a single process" in line for line in errors(result.stderr))
    assert not (tmp_path / "runs").exists()


def test_an_error_is_written_in_one_piece(tmp_path):
    """Or the lines of ranks that fail at once run into each other."""
    read, write = os.pipe2(os.O_DIRECT)  # gives every write back by itself
    subprocess.run([sys.executable, PROJECT / EPOCH, "--gamma", "2"], cwd=tmp_path, stderr=write, check=False)
    os.close(write)
    line = os.read(read, 4096)
    os.close(read)
    assert line.startswith(b"a2c_algorithm_epoch_update.py: error: --gamma 2.0")
    assert line.endswith(b"\n")


def by_hand(tmp_path, script, rank, *args, **variables):
    """Start a rank without torchrun."""
    variables |= {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, script, "--env", "CartPole-v1", "--quiet", *map(str, args)]
    return subprocess.Popen(command, cwd=tmp_path, env=os.environ | variables, stderr=subprocess.PIPE, text=True)


def test_a_rank_without_a_rendezvous(tmp_path):
    _, err = (process := by_hand(tmp_path, PROJECT / EPOCH, 1)).communicate(timeout=200)
    assert process.returncode == 1
    assert len(err.splitlines()) == 1
    assert "rank 1 of 2 has no MASTER_ADDR" in err


@pytest.mark.parametrize("what", ["seed", "the checksum of its scripts"])
def test_ranks_that_differ(tmp_path, what):
    """In a setting, or in the version of the scripts."""
    other = tmp_path / "other"
    shutil.copytree(PROJECT, other, ignore=lambda folder, names: [name for name in names if not name.endswith(PARTS)])
    with (other / "utils.py").open("a") as file:
        file.write("# another version\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    first = by_hand(tmp_path, PROJECT / EPOCH, 0, "--run-dir", "run", **where)
    second = (other / EPOCH, 1) if what != "seed" else (PROJECT / EPOCH, 1, "--seed", 1)
    for process in (first, by_hand(tmp_path, *second, "--run-dir", "run", **where)):
        _, err = process.communicate(timeout=200)
        assert process.returncode == 1
        assert f"for {what}" in err
        assert len(errors(err)) == 1
    assert not (tmp_path / "run").exists()
