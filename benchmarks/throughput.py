"""Timesteps a second of both scripts, beside other libraries' A2C and beside the environment alone.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.throughput                  # about half an hour; a row at once in results/throughput.csv
    python -m benchmarks.throughput --table          # no measuring: print the table of what is there

The same environment (Pendulum-v0), the same number of environments and of steps a batch, two hidden layers of 64, one
thread, one gradient step a batch, but for the rows that are named defaults. Every measurement is a process of its own
that trains, logging and checkpoints included, and takes its time after a warm-up; libraries take turns, so that a slow
minute of the machine falls on all of them.
"""

import csv
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
import torch
import tyro

import environments  # registers Pendulum-v0, for every library

PROJECT = Path(__file__).parent.parent

RESULTS = PROJECT / "results" / "throughput.csv"
COLUMNS = ["case", "library", "num_envs", "steps", "round", "timesteps_per_second"]
ENV = environments.PENDULUM_V0


def ours(script: str, timesteps: int, *flags: str) -> float:
    """Timesteps a second of either script, run as a person would."""
    with tempfile.TemporaryDirectory() as folder:
        paths = ["--run-dir", f"{folder}/run", "--img-dir", folder]
        command = [sys.executable, str(PROJECT / f"a2c_algorithm_{script}_update.py"), "--env", ENV, *paths]
        command += ["--total-timesteps", str(timesteps), *flags]
        subprocess.run(command, check=True, capture_output=True)
        return rate(Path(folder) / "run")


def rate(run: Path) -> float:
    """Timesteps a second of a run, from its own log: the last two thirds, long after it has compiled."""
    with (run / "updates.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    first, last = rows[len(rows) // 3], rows[-1]
    return (int(last["timestep"]) - int(first["timestep"])) / (float(last["wall_time"]) - float(first["wall_time"]))


def step_update(num_envs: int, steps: int, timesteps: int) -> float:
    return ours("step", timesteps)


def epoch_update(num_envs: int, steps: int, timesteps: int, critic_updates: int = 1) -> float:
    size = ("--num-envs", str(num_envs), "--sample-size", str(num_envs * steps))
    return ours("epoch", timesteps, *size, "--critic-updates", str(critic_updates))


def epoch_update_ten_critic_steps(num_envs: int, steps: int, timesteps: int) -> float:
    return epoch_update(num_envs, steps, timesteps, critic_updates=10)


def stable_baselines3(num_envs: int, steps: int, timesteps: int) -> float:
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    model = A2C("MlpPolicy", make_vec_env(ENV, num_envs), n_steps=steps, device="cpu")
    model.learn(max(4 * num_envs * steps, timesteps // 4))
    start = time.perf_counter()
    model.learn(timesteps)
    return timesteps / (time.perf_counter() - start)


def tianshou(num_envs: int, steps: int, timesteps: int) -> float:
    from tianshou.algorithm import A2C
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import RMSpropOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from torch.distributions import Independent, Normal

    env: Any = gym.make(ENV)
    envs = DummyVectorEnv([lambda: gym.make(ENV) for _ in range(num_envs)])

    def net() -> Net:
        return Net(state_shape=env.observation_space.shape, hidden_sizes=[64, 64], activation=torch.nn.Tanh)

    policy = ProbabilisticActorPolicy(
        actor=ContinuousActorProbabilistic(preprocess_net=net(), action_shape=env.action_space.shape, unbounded=True),
        dist_fn=lambda mean_and_std: Independent(Normal(*mean_and_std), 1),
        action_space=env.action_space,
    )
    critic = ContinuousCritic(preprocess_net=net())
    algorithm = A2C(policy=policy, critic=critic, optim=RMSpropOptimizerFactory(lr=7e-4), max_grad_norm=0.5)
    collector: Any = Collector(algorithm, envs, VectorReplayBuffer(num_envs * steps, num_envs))

    def learn(timesteps: int) -> None:
        params = OnPolicyTrainerParams(
            training_collector=collector,
            max_epochs=1,
            epoch_num_steps=timesteps,
            collection_step_num_env_steps=num_envs * steps,
            batch_size=None,
            update_step_num_repetitions=1,
            verbose=False,
            show_progress=False,
        )
        algorithm.run_training(params)

    learn(max(4 * num_envs * steps, timesteps // 4))
    start = time.perf_counter()
    learn(timesteps)
    return timesteps / (time.perf_counter() - start)


def torchrl(num_envs: int, steps: int, timesteps: int) -> float:
    from tensordict.nn import TensorDictModule
    from tensordict.nn.distributions import NormalParamExtractor
    from torchrl.collectors import Collector
    from torchrl.envs import GymEnv, SerialEnv
    from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor, ValueOperator
    from torchrl.objectives import A2CLoss
    from torchrl.objectives.value import GAE

    def make() -> GymEnv:
        return GymEnv(ENV)

    env = SerialEnv(num_envs, make) if num_envs > 1 else make()
    sizes = {"num_cells": [64, 64], "activation_class": torch.nn.Tanh}
    net = torch.nn.Sequential(MLP(in_features=3, out_features=2, **sizes), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(MLP(in_features=3, out_features=1, **sizes), in_keys=["observation"])
    advantage = GAE(gamma=0.99, lmbda=0.95, value_network=critic)
    loss = A2CLoss(actor, critic)
    optimizer = torch.optim.RMSprop(loss.parameters(), lr=7e-4)
    warm_up = max(4 * num_envs * steps, timesteps // 4)
    collector = Collector(env, actor, frames_per_batch=num_envs * steps, total_frames=warm_up + timesteps)
    done, start = 0, time.perf_counter()
    for batch in collector:
        with torch.no_grad():
            advantage(batch)
        losses = loss(batch)
        optimizer.zero_grad()
        (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
        optimizer.step()
        if done < warm_up <= done + batch.numel():
            start, first = time.perf_counter(), done + batch.numel()
        done += batch.numel()
    return (done - first) / (time.perf_counter() - start)


def gymnasium_alone(num_envs: int, steps: int, timesteps: int) -> float:
    """Gymnasium's SyncVectorEnv with one action over and over, and nothing learned."""
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(ENV)] * num_envs)
    return alone(envs, timesteps)


def vectorized_alone(num_envs: int, steps: int, timesteps: int) -> float:
    """The project's own vectorized Pendulum-v0, with nothing learned."""
    return alone(gym.make_vec(ENV, num_envs, "vector_entry_point"), timesteps)


def alone(envs: gym.vector.VectorEnv, timesteps: int) -> float:
    envs.reset(seed=0)
    action = envs.action_space.sample()
    start = time.perf_counter()
    for _ in range(timesteps // envs.num_envs):
        envs.step(action)
    return timesteps / (time.perf_counter() - start)


Measure = Callable[[int, int, int], float]
LIBRARIES: dict[str, Measure] = {
    "step update": step_update,
    "epoch update": epoch_update,
    "epoch update, ten critic steps": epoch_update_ten_critic_steps,
    "Stable-Baselines3": stable_baselines3,
    "Tianshou": tianshou,
    "TorchRL": torchrl,
    "SyncVectorEnv alone": gymnasium_alone,
    "vectorized Pendulum-v0 alone": vectorized_alone,
}
PEERS = ["Stable-Baselines3", "Tianshou", "TorchRL"]
# Environments, steps a batch, and the timesteps that each library is timed over: some seconds each.
CASES: dict[str, tuple[int, int, dict[str, int]]] = {
    "1 x 1": (1, 1, {"step update": 40_000, **dict.fromkeys(PEERS, 1_500), "SyncVectorEnv alone": 50_000}),
    "8 x 8": (8, 8, {"epoch update": 500_000, **dict.fromkeys(PEERS, 20_000), "SyncVectorEnv alone": 100_000}),
    "16 x 32": (
        16,
        32,
        {
            "epoch update": 500_000,
            "epoch update, ten critic steps": 500_000,
            **dict.fromkeys(PEERS, 40_000),
            "SyncVectorEnv alone": 200_000,
            "vectorized Pendulum-v0 alone": 400_000,
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure timesteps a second, libraries taking turns, and print the table."""

    rounds: int = 5
    """Measurements of each library in each case."""
    table: bool = False
    """Measure nothing: print the table of what is there."""
    only: str = ""
    """Only this library's rows, measured in this very process (what the benchmark starts)."""
    case: str = ""
    """Only this case."""


def rows() -> list[dict[str, str]]:
    """The measurements that are done."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def print_table() -> None:
    print("| environments x steps | library | timesteps/s, median | least to most | Stable-Baselines3 = 1 |")
    print("|---|---|---|---|---|")
    done = rows()
    for case, (_, _, timesteps) in CASES.items():
        speeds = {
            library: {
                row["round"]: float(row["timesteps_per_second"])
                for row in done
                if (row["case"], row["library"]) == (case, library)
            }
            for library in timesteps
        }
        for library, speed in speeds.items():
            if speed:
                base = speeds["Stable-Baselines3"]
                ratios = sorted(speed[r] / base[r] for r in speed if r in base)
                ratio = f"{median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})" if ratios else "-"
                low, high = min(speed.values()), max(speed.values())
                print(f"| {case} | {library} | {median(speed.values()):,.0f} | {low:,.0f} to {high:,.0f} | {ratio} |")


def main(config: Config) -> None:
    torch.set_num_threads(1)
    if config.only:
        num_envs, steps, timesteps = CASES[config.case]
        print(f"result {LIBRARIES[config.only](num_envs, steps, timesteps[config.only])}")
        return
    done = {(row["case"], row["library"], row["round"]) for row in rows()}
    todo = [
        (case, library, r)
        for r in range(config.rounds)
        for case in CASES
        for library in CASES[case][2]
        if not config.table and config.case in ("", case) and (case, library, str(r)) not in done
    ]
    for case, library, r in todo:
        command = [sys.executable, "-m", "benchmarks.throughput", "--only", library, "--case", case]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        output = subprocess.run(command, capture_output=True, text=True, env=env, cwd=PROJECT, check=False)
        if output.returncode:
            sys.exit(f"{case}, {library}: {output.stderr[-2000:]}")
        speed = float(output.stdout.split("result ")[-1])
        RESULTS.parent.mkdir(exist_ok=True)
        new = not RESULTS.exists()
        with RESULTS.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(COLUMNS)
            writer.writerow([case, library, *CASES[case][:2], r, round(speed)])
        print(f"{case}, {library}: {speed:,.0f} timesteps/s", flush=True)
    print_table()


if __name__ == "__main__":
    main(tyro.cli(Config))
