"""Returns of Stable-Baselines3's A2C and PPO with the settings of rl-baselines3-zoo, beside those of both scripts.

    pip install -r benchmarks/requirements.txt
    python -m benchmarks.zoo --workers 2      # a day; what results/zoo.csv already has is not done again
    python -m benchmarks.zoo --table          # no training: print the table of what is there

A row of `results/zoo.csv` is a run of 1,000,000 timesteps, on one thread: 100 evaluation episodes of the final policy,
acting by its mode, on environments that training never saw, as in `benchmarks.returns`.

The settings are those of hyperparams/a2c.yml and ppo.yml of https://github.com/DLR-RM/rl-baselines3-zoo at commit
22e3ff2; what is not there is Stable-Baselines3's default. All of them normalize observations and rewards.
"""

import time
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from typing import Any

import numpy as np
import tyro

from benchmarks import returns
from benchmarks.measuring import Measurements, print_table, python
from training.experiments import EPISODES, EVALUATION_SEED

ROWS = Measurements("zoo", "algorithm", "env", "seed", "mean_return", "std_return", "min_return", "seconds")
TIMESTEPS = 1_000_000
ZOO: dict[str, dict[str, dict[str, Any]]] = {
    "A2C": {"HalfCheetah-v4": {}, "Hopper-v4": {}, "Walker2d-v4": {}, "Ant-v4": {}, "Humanoid-v4": {}},
    "PPO": {
        "HalfCheetah-v4": {
            "batch_size": 64,
            "n_steps": 512,
            "gamma": 0.98,
            "learning_rate": 2.0633e-05,
            "ent_coef": 0.000401762,
            "clip_range": 0.1,
            "n_epochs": 20,
            "gae_lambda": 0.92,
            "max_grad_norm": 0.8,
            "vf_coef": 0.58096,
        },
        "Hopper-v4": {
            "batch_size": 32,
            "n_steps": 512,
            "gamma": 0.999,
            "learning_rate": 9.80828e-05,
            "ent_coef": 0.00229519,
            "clip_range": 0.2,
            "n_epochs": 5,
            "gae_lambda": 0.99,
            "max_grad_norm": 0.7,
            "vf_coef": 0.835671,
        },
        "Walker2d-v4": {
            "batch_size": 32,
            "n_steps": 512,
            "gamma": 0.99,
            "learning_rate": 5.05041e-05,
            "ent_coef": 0.000585045,
            "clip_range": 0.1,
            "n_epochs": 20,
            "gae_lambda": 0.95,
            "max_grad_norm": 1,
            "vf_coef": 0.871923,
        },
        "Ant-v4": {},
        "Humanoid-v4": {
            "batch_size": 256,
            "n_steps": 512,
            "gamma": 0.95,
            "learning_rate": 3.56987e-05,
            "ent_coef": 0.00238306,
            "clip_range": 0.3,
            "n_epochs": 5,
            "gae_lambda": 0.9,
            "max_grad_norm": 2,
            "vf_coef": 0.431892,
        },
    },
}
"""Settings by algorithm and environment. The tuned ones, which are those with a batch size, have networks of 256."""


@dataclass(frozen=True, kw_only=True)
class Config(returns.Config):
    """Train and score Stable-Baselines3's A2C and PPO, and print their table."""

    seeds: int = 5
    """Seeds 0 to seeds - 1."""
    run: tuple[str, ...] = ()
    """Only this algorithm, environment and seed, in this very process (what the benchmark starts)."""


def train(algorithm: str, env_id: str, seed: int) -> None:
    """Train and score one policy, in this process."""
    import stable_baselines3
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    start, settings = time.perf_counter(), dict(ZOO[algorithm][env_id])
    if "batch_size" in settings:
        layers = {"net_arch": {"pi": [256, 256], "vf": [256, 256]}, "activation_fn": torch.nn.ReLU}
        settings["policy_kwargs"] = {"log_std_init": -2, "ortho_init": False} | layers
    gamma = settings.get("gamma", 0.99)
    env = VecNormalize(make_vec_env(env_id, 1, seed=seed), gamma=gamma)
    model = getattr(stable_baselines3, algorithm)("MlpPolicy", env, seed=seed, device="cpu", **settings)
    model.learn(TIMESTEPS)
    seconds = time.perf_counter() - start
    evaluation_env = VecNormalize(make_vec_env(env_id, 20, seed=EVALUATION_SEED + seed), training=False, gamma=gamma)
    evaluation_env.obs_rms = env.obs_rms
    scores, _ = evaluate_policy(model, evaluation_env, EPISODES, return_episode_rewards=True)  # not normalized
    print("result", *(f"{value:.2f}" for value in (np.mean(scores), np.std(scores), np.min(scores), seconds)))


def measure(config: Config) -> None:
    """Train what is not there yet, each in a process of its own."""
    runs = [(algorithm, env, seed) for seed in range(config.seeds) for algorithm in ZOO for env in ZOO[algorithm]]
    todo = [
        (algorithm, env, seed)
        for algorithm, env, seed in runs
        if config.only in f"{algorithm} {env}" and not ROWS.rows(algorithm=algorithm, env=env, seed=seed)
    ]

    def scored(run: tuple[str, str, int]) -> dict[str, object]:
        [values] = python("-m", "benchmarks.zoo", "--run", *run)
        return dict(zip(ROWS.columns, (*run, *values), strict=True))

    with ThreadPool(config.workers) as pool:
        for row in pool.imap_unordered(scored, todo):
            ROWS.add(row)


def print_zoo() -> None:
    """The table of `docs/results.md`: both scripts beside what was measured here."""
    own, rows = returns.all_scores(), []
    for env in ZOO["A2C"]:
        learners = {
            f"{script} update": own.get(returns.Experiment(script, env, TIMESTEPS)) for script in ("step", "epoch")
        }
        for algorithm in ZOO:
            found = [float(row["mean_return"]) for row in ROWS.rows(algorithm=algorithm, env=env)]
            learners[f"Stable-Baselines3 {algorithm}"] = np.sort(found) if found else None
        rows += [
            f"{env} | {learner} | {returns.interval(scores)} | {returns.listed(scores)}"
            for learner, scores in learners.items()
            if scores is not None
        ]
    print_table("environment, 1,000,000 timesteps | learner | mean (95 % interval) | all seeds", rows)


def main(config: Config) -> None:
    if config.run:
        algorithm, env, seed = config.run
        train(algorithm, env, int(seed))
        return
    if not config.table:
        measure(config)
    print_zoo()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
