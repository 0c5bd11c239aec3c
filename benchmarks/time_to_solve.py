"""Seconds from starting a process to a solved Pendulum-v0: 100 evaluation episodes of a mean return of -200 or better.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.time_to_solve               # all of it; what results/time_to_solve.csv has is not done again
    python -m benchmarks.time_to_solve --table       # no measuring: print the table of what is there

Every learner is a process of its own, on one thread and alone on the machine, that evaluates its deterministic policy
every 10,000 timesteps and stops when that is good enough. Imports, compiling and evaluating all count.
Stable-Baselines3 has the settings that rl-baselines3-zoo tuned for Pendulum.
"""

import csv
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import tyro

PROJECT = Path(__file__).parent.parent

START = float(os.environ.get("START", time.time()))

RESULTS = PROJECT / "results" / "time_to_solve.csv"
COLUMNS = ["learner", "seed", "seconds", "timesteps"]
THRESHOLD, EPISODES, INTERVAL = -200.0, 100, 10_000
LEARNERS = ["epoch update", "step update", "step update, cold cache"]  # the epoch update compiles nothing so short
PEERS = ["Stable-Baselines3 PPO, tuned", "Stable-Baselines3 A2C, tuned"]


def solved(score: float, timesteps: int) -> bool:
    """Say how long it took, if the score is good enough."""
    if score >= THRESHOLD:
        print(f"solved {time.time() - START:.2f} {timesteps}", flush=True)
    return score >= THRESHOLD


def ours(script: str, seed: int) -> None:
    """Either script with its defaults."""
    import a2c_algorithm_epoch_update as epoch
    import a2c_algorithm_step_update as step
    from training import Run, evaluate

    save = Run.save

    def save_and_evaluate(run: Run, **loop: Any) -> None:
        save(run, **loop)
        score = evaluate(run.policy, run.config.env, EPISODES, seed=1_000 + seed)["mean_return"]
        if solved(score, run.timestep):
            os._exit(0)

    Run.save = save_and_evaluate  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"run_dir": Path(folder) / "run", "img_dir": Path(folder), "seed": seed}
        settings["checkpoint_interval"] = INTERVAL
        if script == "epoch":
            epoch.train(epoch.Config(**settings))
        else:
            step.train(step.Config(**settings))


def stable_baselines3(algorithm: str, seed: int) -> None:
    """Settings of rl-baselines3-zoo, hyperparams/a2c.yml and ppo.yml, Pendulum-v1."""
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    import environments  # registers Pendulum-v0

    a2c = algorithm == "A2C"
    env: Any = make_vec_env(environments.PENDULUM_V0, 8 if a2c else 4, seed=seed)
    evaluation_env: Any = make_vec_env(environments.PENDULUM_V0, 10, seed=1_000 + seed)
    settings: dict[str, Any] = {"gamma": 0.9, "use_sde": True, "seed": seed, "device": "cpu"}
    if a2c:
        env = VecNormalize(env, gamma=0.9)
        evaluation_env = VecNormalize(evaluation_env, training=False, norm_reward=False, gamma=0.9)
        settings |= {"n_steps": 8, "gae_lambda": 0.9, "vf_coef": 0.4, "learning_rate": lambda left: 7e-4 * left}
        settings |= {"policy_kwargs": {"log_std_init": -2, "ortho_init": False}}
    else:
        settings |= {"n_steps": 1024, "gae_lambda": 0.95, "learning_rate": 1e-3, "sde_sample_freq": 4}

    class Evaluate(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % INTERVAL >= env.num_envs:
                return True
            if a2c:
                evaluation_env.obs_rms = env.obs_rms
            score: Any = evaluate_policy(self.model, evaluation_env, EPISODES, warn=False)[0]
            return not solved(score, self.num_timesteps)

    model = getattr(stable_baselines3, algorithm)("MlpPolicy", env, **settings)
    model.learn(1_000_000 if a2c else 100_000, callback=Evaluate())


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure the seconds to a solved Pendulum-v0, and print the table."""

    seeds: int = 10
    """Seeds 0 to seeds - 1."""
    table: bool = False
    """Measure nothing: print the table of what is there."""
    peers: bool = True
    """Measure Stable-Baselines3 too."""
    learner: str = ""
    """Only this learner, in this very process (what the benchmark starts)."""
    seed: int = 0
    """Seed of --learner."""


def rows() -> list[dict[str, str]]:
    """The measurements that are done."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def measure(learner: str, seed: int) -> tuple[str, str]:
    """Seconds and timesteps to the solution; inf and an empty string where the learner ended without one."""
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {"OMP_NUM_THREADS": "1", "START": str(time.time())}
        if "cold" in learner:
            env["TORCHINDUCTOR_CACHE_DIR"] = cache
        command = [sys.executable, "-m", "benchmarks.time_to_solve", "--learner", learner, "--seed", str(seed)]
        output = subprocess.run(command, capture_output=True, text=True, env=env, cwd=PROJECT, check=False)
    if output.returncode:
        sys.exit(f"{learner}, seed {seed}: {output.stderr[-2000:]}")
    found = [line.split() for line in output.stdout.splitlines() if line.startswith("solved ")]
    return (found[0][1], found[0][2]) if found else ("inf", "")


def print_table() -> None:
    print("| learner | seconds, median | least to most | timesteps, median | seeds solved |")
    print("|---|---|---|---|---|")
    for learner in LEARNERS + PEERS:
        runs = [row for row in rows() if row["learner"] == learner]
        if runs:
            seconds = sorted(float(row["seconds"]) for row in runs)
            timesteps = [int(row["timesteps"]) for row in runs if row["timesteps"]]
            middle = f"{median(timesteps):,.0f}" if timesteps else "-"
            spread = f"{seconds[0]:.1f} to {seconds[-1]:.1f}"
            print(f"| {learner} | {median(seconds):.1f} | {spread} | {middle} | {len(timesteps)} of {len(runs)} |")


def main(config: Config) -> None:
    if config.learner:
        import torch

        torch.set_num_threads(1)
        if config.learner in PEERS:
            stable_baselines3("PPO" if "PPO" in config.learner else "A2C", config.seed)
        else:
            ours(config.learner.split()[0], config.seed)
        return
    done = {(row["learner"], row["seed"]) for row in rows()}
    for seed in range(config.seeds):
        for learner in LEARNERS + PEERS * config.peers:
            if config.table or (learner, str(seed)) in done:
                continue
            seconds, timesteps = measure(learner, seed)
            RESULTS.parent.mkdir(exist_ok=True)
            new = not RESULTS.exists()
            with RESULTS.open("a", newline="") as file:
                writer = csv.writer(file)
                if new:
                    writer.writerow(COLUMNS)
                writer.writerow([learner, seed, seconds, timesteps])
            print(f"{learner}, seed {seed}: {seconds} s, {timesteps} timesteps", flush=True)
    print_table()


if __name__ == "__main__":
    main(tyro.cli(Config))
