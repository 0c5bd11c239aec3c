"""How fast both scripts are, beside other libraries and beside the environments alone.

    pip install -r benchmarks/requirements.txt envpool
    python -m benchmarks.speed                       # hours; what results/ has is not measured again
    python -m benchmarks.speed --only throughput     # half an hour
    python -m benchmarks.speed --table               # no measuring: print the tables of what is there

Every measurement is a process of its own, on one thread and alone on the machine; cases take turns, so that a slow
minute of the machine falls on all of them.

throughput: timesteps a second on Pendulum-v0. The same number of environments and of steps a batch, two hidden layers
of 64, one gradient step a batch where the row does not say otherwise. Logging and checkpoints count, a warm-up not. The
JAX loop and rejax step the environments of gymnax inside of the compiled code, and log nothing.

time_to_solve: seconds from starting a process until a policy is good enough: 100 evaluation episodes of a mean return
of -200 or better (Pendulum-v0), or 475 (CartPole-v1). Every learner evaluates its deterministic policy every 10,000
timesteps. Imports, compiling and evaluating all count; JAX and rejax may use all cores here. Both
scripts have their defaults, for 100,000 timesteps, the other libraries the settings that they or their zoo give for
the environment.

mujoco_speed: seconds from the start of a process to its end, of 1,000,000 timesteps of HalfCheetah-v4 with 4
environments, 8 steps a batch, two hidden layers of 64, observations and rewards normalized: the epoch update with one
gradient step of the critic, Stable-Baselines3's A2C with the same sizes, and MuJoCo's share.
"""

import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import gymnasium as gym
import tyro

from benchmarks import peers
from benchmarks.measuring import Config, Measurements, measure_and_show, print_table, python, rate, training

# PyTorch and the libraries are imported where they are used: some of what is timed from start to end needs none.

THROUGHPUT = Measurements("throughput", "case", "library", "num_envs", "steps", "round", "timesteps_per_second")
ENV = "Pendulum-v0"


def epoch_update(num_envs: int, steps: int, timesteps: int, critic_updates: int = 1) -> float:
    size = ("--num-envs", num_envs, "--sample-size", num_envs * steps, "--critic-updates", critic_updates)
    return rate("epoch", "--env", ENV, "--total-timesteps", timesteps, *size)


def alone(envs: gym.vector.VectorEnv, timesteps: int) -> float:
    """Environments with one action over and over, and nothing learned."""
    envs.reset(seed=0)
    action = envs.action_space.sample()
    start = time.perf_counter()
    for _ in range(timesteps // envs.num_envs):
        envs.step(action)
    return timesteps / (time.perf_counter() - start)


LIBRARIES: dict[str, Callable[[int, int, int], float]] = {
    "step update": lambda _1, _2, timesteps: rate("step", "--env", ENV, "--total-timesteps", timesteps),
    "epoch update": epoch_update,
    "epoch update, ten critic steps": partial(epoch_update, critic_updates=10),
    "JAX loop": partial(peers.jax_loop, ENV),
    "JAX loop, one critic step": partial(peers.jax_loop, ENV, critic_updates=1),
    "JAX loop, ten critic steps": partial(peers.jax_loop, ENV),
    "rejax": partial(peers.rejax, ENV),
    "Stable-Baselines3": partial(peers.stable_baselines3, ENV),
    "Tianshou": partial(peers.tianshou, ENV),
    "TorchRL": partial(peers.torchrl, ENV),
    "TorchRL, compiled": partial(peers.torchrl, ENV, compiled=True),
    "SyncVectorEnv alone": lambda n, _, t: alone(gym.vector.SyncVectorEnv([lambda: gym.make(ENV)] * n), t),
    "vectorized Pendulum-v0 alone": lambda n, _, t: alone(gym.make_vec(ENV, n, "vector_entry_point"), t),
}
PEERS = ["Stable-Baselines3", "Tianshou", "TorchRL", "TorchRL, compiled"]
CASES = {
    "1 x 1": {
        "step update": 40_000,
        "JAX loop": 100_000,
        **dict.fromkeys(PEERS, 1_500),
        "SyncVectorEnv alone": 50_000,
    },
    "8 x 8": {
        "epoch update": 500_000,
        "JAX loop, one critic step": 500_000,
        "rejax": 500_000,
        **dict.fromkeys(PEERS, 20_000),
        "SyncVectorEnv alone": 100_000,
    },
    "16 x 32": {
        "epoch update": 500_000,
        "epoch update, ten critic steps": 500_000,
        "JAX loop, one critic step": 1_000_000,
        "JAX loop, ten critic steps": 500_000,
        "rejax": 1_000_000,
        **dict.fromkeys(PEERS, 40_000),
        "SyncVectorEnv alone": 200_000,
        "vectorized Pendulum-v0 alone": 400_000,
    },
}
"""Environments x steps a batch, and the timesteps that each library is timed over: some seconds each."""


def throughput(case: str, library: str) -> None:
    """Time one library, in this process."""
    import torch

    import environments  # noqa: F401 (registers Pendulum-v0, for every library)

    torch.set_num_threads(1)
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # for JAX, which has no setting for it
    num_envs, steps = map(int, case.split(" x "))
    print("result", LIBRARIES[library](num_envs, steps, CASES[case][library]))


def measure_throughput() -> None:
    for r, (case, libraries) in product(range(5), CASES.items()):
        num_envs, steps = case.split(" x ")
        for library in libraries:
            row = {"case": case, "library": library, "num_envs": num_envs, "steps": steps, "round": r}
            if not THROUGHPUT.rows(**row):
                [[speed]] = child("throughput", case, library)
                THROUGHPUT.add(row | {"timesteps_per_second": round(float(speed))})


def print_throughput() -> None:
    rows = []
    for case, libraries in CASES.items():
        base = THROUGHPUT.by_round(case=case, library="Stable-Baselines3")
        for library in libraries:
            if speeds := THROUGHPUT.by_round(case=case, library=library):
                times = ratios(speeds, base)
                ratio = f"{median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
                rows.append(f"{case} | {library} | {spread(speeds.values(), ',.0f')} | {ratio}")
    print_table("environments x steps | library | timesteps/s, median | least to most | Stable-Baselines3 = 1", rows)


TIME_TO_SOLVE = Measurements("time_to_solve", "env", "learner", "seed", "seconds", "timesteps")
THRESHOLDS = {"Pendulum-v0": -200.0, "CartPole-v1": 475.0}
SOLVE_TIMESTEPS = 100_000
"""Of a whole run of either script, and of the JAX loop."""


def solve(script: str, task: peers.Solving) -> None:
    """Either script with its defaults."""
    import a2c_algorithm_epoch_update as epoch
    import a2c_algorithm_step_update as step
    from training import Run, evaluate

    save = Run.save

    def save_and_evaluate(run: Run, **loop: Any) -> None:
        save(run, **loop)
        score = evaluate(run.policy, task.env_id, task.episodes, seed=1_000 + task.seed)["mean_return"]
        if task.solved(score, run.timestep):
            os._exit(0)

    Run.save = save_and_evaluate  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {"run_dir": Path(folder) / "run", "img_dir": Path(folder), "seed": task.seed}
        settings |= {"env": task.env_id, "total_timesteps": SOLVE_TIMESTEPS, "checkpoint_interval": task.interval}
        module: Any = {"epoch": epoch, "step": step}[script]
        module.train(module.Config(**settings))


LEARNERS: dict[str, Callable[[peers.Solving], None]] = {
    "epoch update": partial(solve, "epoch"),
    "epoch update, nothing compiled before": partial(solve, "epoch"),
    "step update": partial(solve, "step"),
    "step update, nothing compiled before": partial(solve, "step"),
    "JAX loop, epoch update": partial(peers.solve_with_jax_loop, (16, 8), SOLVE_TIMESTEPS),
    "JAX loop, step update": partial(peers.solve_with_jax_loop, (1, 1), SOLVE_TIMESTEPS),
    "rejax PPO": peers.solve_with_rejax,
    "Stable-Baselines3 PPO": partial(peers.solve_with_stable_baselines3, "PPO"),
    "Stable-Baselines3 A2C": partial(peers.solve_with_stable_baselines3, "A2C"),
}


def time_to_solve(env_id: str, learner: str, seed: str) -> None:
    """Solve an environment with one learner, in this process; print when it is solved."""

    def solved(score: float, timesteps: int) -> bool:
        if score >= THRESHOLDS[env_id]:
            print("result", time.time(), timesteps, flush=True)
        return score >= THRESHOLDS[env_id]

    LEARNERS[learner](peers.Solving(env_id=env_id, seed=int(seed), episodes=100, interval=10_000, solved=solved))


def measure_time_to_solve() -> None:
    for seed, env_id, learner in product(range(10), THRESHOLDS, LEARNERS):
        row = {"env": env_id, "learner": learner, "seed": seed}
        if not TIME_TO_SOLVE.rows(**row):
            with tempfile.TemporaryDirectory() as cache:
                cold = {"TORCHINDUCTOR_CACHE_DIR": cache} if "nothing compiled" in learner else {}
                start = time.time()
                results = child("time_to_solve", env_id, learner, seed, **cold)
            seconds, timesteps = (f"{float(results[0][0]) - start:.2f}", results[0][1]) if results else ("inf", "")
            TIME_TO_SOLVE.add(row | {"seconds": seconds, "timesteps": timesteps})


def print_time_to_solve() -> None:
    rows = []
    for env_id, learner in product(THRESHOLDS, LEARNERS):
        if runs := TIME_TO_SOLVE.rows(env=env_id, learner=learner):
            seconds = spread([float(row["seconds"]) for row in runs], ".1f")
            timesteps = [int(row["timesteps"]) for row in runs if row["timesteps"]]
            middle = f"{median(timesteps):,.0f}" if timesteps else "-"
            rows.append(f"{env_id} | {learner} | {seconds} | {middle} | {len(timesteps)} of {len(runs)}")
    print_table("environment | learner | seconds, median | least to most | timesteps, median | seeds solved", rows)


MUJOCO_SPEED = Measurements("mujoco_speed", "case", "round", "seconds")
MUJOCO_ENV, TIMESTEPS, NUM_ENVS, STEPS = "HalfCheetah-v4", 1_000_000, 4, 8


def mujoco_epoch_update(*flags: str) -> None:
    size = ("--num-envs", NUM_ENVS, "--sample-size", NUM_ENVS * STEPS, "--total-timesteps", TIMESTEPS)
    with tempfile.TemporaryDirectory() as folder:
        python(*training("epoch", folder, "--env", MUJOCO_ENV, "--quiet", *size, "--critic-updates", 1, *flags))


def mujoco_gymnasium_alone() -> None:
    """The environments by themselves, with random actions."""
    envs = gym.vector.SyncVectorEnv([lambda: gym.make(MUJOCO_ENV)] * NUM_ENVS)
    envs.reset(seed=0)
    envs.action_space.seed(0)
    for _ in range(TIMESTEPS // NUM_ENVS):
        envs.step(envs.action_space.sample())


def mujoco_alone() -> None:
    """The physics by itself: no observations, rewards or episodes."""
    import mujoco

    env: Any = gym.make(MUJOCO_ENV).unwrapped
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(TIMESTEPS // 100):
        env.data.ctrl[:] = env.action_space.sample()
        mujoco.mj_step(env.model, env.data, nstep=100 * env.frame_skip)


MUJOCO_CASES: dict[str, Callable[[], None]] = {
    "epoch update": mujoco_epoch_update,
    "epoch update, EnvPool": partial(mujoco_epoch_update, "--vector-backend", "envpool"),
    "Stable-Baselines3": partial(peers.train_stable_baselines3, MUJOCO_ENV, NUM_ENVS, STEPS, TIMESTEPS),
    "SyncVectorEnv alone": mujoco_gymnasium_alone,
    "MuJoCo alone": mujoco_alone,
}


def measure_mujoco_speed() -> None:
    for r, case in product(range(3), MUJOCO_CASES):
        row = {"case": case, "round": r}
        if not MUJOCO_SPEED.rows(**row):
            start = time.perf_counter()
            child("mujoco_speed", case)
            MUJOCO_SPEED.add(row | {"seconds": f"{time.perf_counter() - start:.1f}"})


def print_mujoco_speed() -> None:
    seconds = {case: MUJOCO_SPEED.by_round(case=case) for case in MUJOCO_CASES}
    rows = []
    for case, times in seconds.items():
        if times:
            speed, share = (median(ratios(seconds[name], times)) for name in ("Stable-Baselines3", "MuJoCo alone"))
            rows.append(f"{case} | {spread(times.values(), '.0f')} | {speed:.1f} | {share:.0%}")
    print_table(
        "1,000,000 timesteps of HalfCheetah-v4 | seconds, median | least to most | Stable-Baselines3 = 1 | MuJoCo", rows
    )


def spread(values: Collection[float], form: str) -> str:
    """Median | least to most."""
    return f"{median(values):{form}} | {min(values):{form}} to {max(values):{form}}"


def ratios(values: Mapping[str, float], base: Mapping[str, float]) -> list[float]:
    """Of each round that both have, nan if there is none."""
    return [values[r] / base[r] for r in values if r in base] or [math.nan]


def child(name: str, *case: object, **environment: str) -> list[list[str]]:
    """Do a case in a process of its own; returns the results that it prints."""
    return python("-m", "benchmarks.speed", "--case", name, *case, **environment)


CHILDREN: dict[str, Callable[..., None]] = {
    "throughput": throughput,
    "time_to_solve": time_to_solve,
    "mujoco_speed": lambda case: MUJOCO_CASES[case](),
}
"""What does a case, in its process."""
BENCHMARKS = {
    "throughput": (measure_throughput, print_throughput),
    "time_to_solve": (measure_time_to_solve, print_time_to_solve),
    "mujoco_speed": (measure_mujoco_speed, print_mujoco_speed),
}


@dataclass(frozen=True, kw_only=True)
class SpeedConfig(Config):
    case: tuple[str, ...] = ()
    """Only this case of a benchmark, in this very process (what the benchmark starts)."""


def main(config: SpeedConfig) -> None:
    if config.case:
        name, *case = config.case
        CHILDREN[name](*case)
    else:
        measure_and_show(config, BENCHMARKS)


if __name__ == "__main__":
    main(tyro.cli(SpeedConfig, description=__doc__))
