"""Seconds from the command to the trained policy on HalfCheetah-v4, beside Stable-Baselines3, and MuJoCo's share.

    pip install -r benchmarks/requirements.txt envpool
    python -m benchmarks.mujoco_speed                  # some ten minutes a round, into results/mujoco_speed.csv
    python -m benchmarks.mujoco_speed --table          # no measuring: print the table of what is there

1,000,000 timesteps, 4 environments, 8 steps a batch, two hidden layers of 64, one thread, observations and rewards
normalized: the epoch update with one gradient step of the critic, and Stable-Baselines3's A2C with the same sizes.
Every measurement is a process of its own, from its start to its end; they take turns, so that a slow minute of the
machine falls on all of them.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import tyro

PROJECT = Path(__file__).parent.parent

RESULTS = PROJECT / "results" / "mujoco_speed.csv"
COLUMNS = ["case", "round", "seconds"]
ENV, TIMESTEPS, NUM_ENVS, STEPS = "HalfCheetah-v4", 1_000_000, 4, 8


def epoch_update(*flags: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PROJECT / "a2c_algorithm_epoch_update.py"), "--env", ENV, "--quiet", *flags]
        command += ["--num-envs", str(NUM_ENVS), "--sample-size", str(NUM_ENVS * STEPS), "--critic-updates", "1"]
        command += ["--total-timesteps", str(TIMESTEPS), "--run-dir", f"{folder}/run", "--img-dir", folder]
        subprocess.run(command, check=True)


def epoch_update_envpool() -> None:
    epoch_update("--vector-backend", "envpool")


def stable_baselines3() -> None:
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    A2C("MlpPolicy", VecNormalize(make_vec_env(ENV, NUM_ENVS)), n_steps=STEPS, device="cpu").learn(TIMESTEPS)


def gymnasium_alone() -> None:
    """The environments by themselves, with random actions."""
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(ENV)] * NUM_ENVS)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(TIMESTEPS // NUM_ENVS):
        envs.step(envs.action_space.sample())


def mujoco_alone() -> None:
    """The physics by itself: no observations, rewards or episodes."""
    import mujoco

    env: Any = gym.make(ENV).unwrapped
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(TIMESTEPS // 100):
        env.data.ctrl[:] = env.action_space.sample()
        mujoco.mj_step(env.model, env.data, nstep=100 * env.frame_skip)


CASES: dict[str, Callable[[], None]] = {
    "epoch update": epoch_update,
    "epoch update, EnvPool": epoch_update_envpool,
    "Stable-Baselines3": stable_baselines3,
    "SyncVectorEnv alone": gymnasium_alone,
    "MuJoCo alone": mujoco_alone,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure seconds from start to end, and print the table."""

    rounds: int = 3
    """Measurements of each case."""
    table: bool = False
    """Measure nothing: print the table of what is there."""
    only: str = ""
    """Only this case, in this very process (what the benchmark starts)."""


def rows() -> list[dict[str, str]]:
    """The measurements that are done."""
    from training.experiments import (
        read_csv,  # not above: it imports PyTorch, which what is timed by itself does not need
    )

    return read_csv(RESULTS, COLUMNS)


def print_table() -> None:
    """The table of docs/results.md: seconds, Stable-Baselines3's divided by them, and MuJoCo's share of them."""
    seconds = {case: {row["round"]: float(row["seconds"]) for row in rows() if row["case"] == case} for case in CASES}
    print(
        "| 1,000,000 timesteps of HalfCheetah-v4 | seconds, median | least to most | Stable-Baselines3 = 1 | MuJoCo |"
    )
    print("|---|---|---|---|---|")
    for case, times in seconds.items():
        if times:
            base, physics = (seconds[name] for name in ("Stable-Baselines3", "MuJoCo alone"))
            rounds = times.keys() & base.keys() & physics.keys()
            speed = median(base[r] / times[r] for r in rounds) if rounds else float("nan")
            share = median(physics[r] / times[r] for r in rounds) if rounds else float("nan")
            low, high = min(times.values()), max(times.values())
            print(f"| {case} | {median(times.values()):.0f} | {low:.0f} to {high:.0f} | {speed:.1f} | {share:.0%} |")


def main(config: Config) -> None:
    if config.only:
        CASES[config.only]()
        return
    from training.experiments import write_csv

    done = {(row["case"], row["round"]) for row in rows()}
    for r in range(0 if config.table else config.rounds):
        for case in CASES:
            if (case, str(r)) in done:
                continue
            start = time.perf_counter()
            env = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(
                [sys.executable, "-m", "benchmarks.mujoco_speed", "--only", case],
                check=True,
                env=env,
                cwd=PROJECT,
                stdout=subprocess.DEVNULL,
            )
            seconds = time.perf_counter() - start
            row = dict(zip(COLUMNS, (case, str(r), f"{seconds:.1f}"), strict=True))
            write_csv(RESULTS, COLUMNS, [*rows(), row])
            print(f"{case}: {seconds:.1f} s", flush=True)
    print_table()


if __name__ == "__main__":
    main(tyro.cli(Config))
