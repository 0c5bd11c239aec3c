"""A2C and PPO of other libraries, trained for `benchmarks.speed`: all optional, and imported where they are used."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium as gym

GYMNAX = {"Pendulum-v0": "Pendulum-v1", "CartPole-v1": "CartPole-v1"}
"""The names of environments in gymnax. Its Pendulum-v1 is the pendulum of both versions of Gymnasium."""
JAX_SETTINGS: dict[str, dict[str, Any]] = {
    "step": {
        "hidden_sizes": (64, 64),
        "gamma": 0.995,
        "trace_lambda": 0.85,
        "actor_lr": 3e-4,
        "critic_lr": 3e-4,
        "repeat_noise": 0.9,
    },
    "epoch": {
        "hidden_sizes": (64, 64),
        "gamma": 0.995,
        "gae_lambda": 0.9,
        "actor_lr": 3e-4,
        "critic_lr": 5e-5,
        "critic_updates": 10,
        "max_kl": 0.01,
        "repeat_noise": 0.9,
    },
}
"""The defaults of the scripts, which a process that is timed from its start must not import: PyTorch takes a second."""
MEAN_SQUARE_HORIZON, BETA = 51_200, 0.999
"""Of the optimizers of the epoch update and the step update."""
REJAX: dict[str, dict[str, Any]] = {
    "Pendulum-v0": {
        "timesteps": 150_000,
        "num_envs": 100,
        "num_steps": 100,
        "num_epochs": 10,
        "num_minibatches": 10,
        "learning_rate": 1e-3,
        "max_grad_norm": 10,
        "gamma": 0.995,
        "ent_coef": 0.0,
        "normalize_observations": True,
    },
    "CartPole-v1": {
        "timesteps": 100_000,
        "agent_kwargs": {"activation": "tanh"},
        "num_envs": 5,
        "num_steps": 100,
        "num_epochs": 5,
        "num_minibatches": 5,
        "learning_rate": 7.5e-4,
        "max_grad_norm": 0.5,
    },
}
"""PPO in configs/gymnax of https://github.com/keraJLi/rejax at commit 4954fbf; the rest are its defaults."""
ZOO: dict[tuple[str, str], dict[str, Any]] = {
    ("A2C", "Pendulum-v0"): {
        "num_envs": 8,
        "timesteps": 1_000_000,
        "normalized": True,
        "gamma": 0.9,
        "use_sde": True,
        "n_steps": 8,
        "gae_lambda": 0.9,
        "vf_coef": 0.4,
        "learning_rate": lambda left: 7e-4 * left,
        "policy_kwargs": {"log_std_init": -2, "ortho_init": False},
    },
    ("PPO", "Pendulum-v0"): {
        "num_envs": 4,
        "timesteps": 100_000,
        "normalized": False,
        "gamma": 0.9,
        "use_sde": True,
        "n_steps": 1024,
        "learning_rate": 1e-3,
        "sde_sample_freq": 4,
    },
    ("A2C", "CartPole-v1"): {"num_envs": 8, "timesteps": 500_000, "normalized": False},
    ("PPO", "CartPole-v1"): {
        "num_envs": 8,
        "timesteps": 100_000,
        "normalized": False,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "learning_rate": lambda left: 1e-3 * left,
        "clip_range": lambda left: 0.2 * left,
    },
}
"""hyperparams/a2c.yml and ppo.yml of https://github.com/DLR-RM/rl-baselines3-zoo; the rest are defaults."""


def stable_baselines3(env_id: str, num_envs: int, steps: int, timesteps: int) -> float:
    """Timesteps a second after a warm-up."""
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env

    model = A2C("MlpPolicy", make_vec_env(env_id, num_envs), n_steps=steps, device="cpu")
    model.learn(max(4 * num_envs * steps, timesteps // 4))
    start = time.perf_counter()
    model.learn(timesteps)
    return timesteps / (time.perf_counter() - start)


def tianshou(env_id: str, num_envs: int, steps: int, timesteps: int) -> float:
    """Timesteps a second after a warm-up."""
    import torch
    from tianshou.algorithm import A2C
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import RMSpropOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
    from torch.distributions import Independent, Normal

    env: Any = gym.make(env_id)
    envs = DummyVectorEnv([lambda: gym.make(env_id) for _ in range(num_envs)])

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


def torchrl(env_id: str, num_envs: int, steps: int, timesteps: int, compiled: bool = False) -> float:
    """Timesteps a second after a warm-up; compiled: policy, advantages and update, as in its sota-implementations."""
    import torch
    from tensordict.nn import TensorDictModule
    from tensordict.nn.distributions import NormalParamExtractor
    from torchrl.collectors import Collector
    from torchrl.envs import GymEnv, SerialEnv
    from torchrl.modules import MLP, IndependentNormal, ProbabilisticActor, ValueOperator
    from torchrl.objectives import A2CLoss
    from torchrl.objectives.value import GAE

    def make() -> GymEnv:
        return GymEnv(env_id)

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
    size = num_envs * steps
    collector: Any = Collector(
        env, actor, frames_per_batch=size, total_frames=warm_up + timesteps, compile_policy=compiled
    )

    def update(batch: Any) -> None:
        losses = loss(batch)
        (losses["loss_objective"] + losses["loss_entropy"] + losses["loss_critic"]).backward()
        torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    estimate, learn = (torch.compile(function) if compiled else function for function in (advantage, update))
    done, start = 0, time.perf_counter()
    for batch in collector:
        with torch.no_grad():
            estimate(batch)
        learn(batch)
        if done < warm_up <= done + batch.numel():
            start, first = time.perf_counter(), done + batch.numel()
        done += batch.numel()
    return (done - first) / (time.perf_counter() - start)


def rejax(env_id: str, num_envs: int, steps: int, timesteps: int) -> float:
    """Timesteps a second of PPO with one epoch and one minibatch, nearest to A2C, after compiling."""
    import jax
    from rejax import PPO

    sizes = {"num_envs": num_envs, "num_steps": steps, "num_epochs": 1, "num_minibatches": 1}
    ppo = PPO.create(env=GYMNAX[env_id], **sizes)
    updates = timesteps // (num_envs * steps)
    train = rejax_training(ppo, updates)
    state = jax.block_until_ready(train(ppo.init_state(jax.random.key(0))))
    start = time.perf_counter()
    jax.block_until_ready(train(state))
    return updates * num_envs * steps / (time.perf_counter() - start)


def rejax_training(ppo: Any, updates: int) -> Callable[[Any], Any]:
    """So many updates of a training state, compiled."""
    import jax

    return jax.jit(lambda state: jax.lax.fori_loop(0, updates, lambda _, state: ppo.train_iteration(state), state))


def jax_loop(env_id: str, num_envs: int, steps: int, timesteps: int, **changes: Any) -> float:
    """Timesteps a second of `benchmarks.jax_loop`, after compiling."""
    import jax

    loop = make_jax_loop(env_id, num_envs, steps, 2 * timesteps, **changes)
    updates = timesteps // (num_envs * steps)
    carry = jax.block_until_ready(loop.train(loop.init(0), updates))
    start = time.perf_counter()
    jax.block_until_ready(loop.train(carry, updates))
    return updates * num_envs * steps / (time.perf_counter() - start)


def make_jax_loop(env_id: str, num_envs: int, steps: int, timesteps: int, **changes: Any) -> Any:
    """The step update for one environment and one step, else the epoch update, with changed settings."""
    from benchmarks.jax_loop import EpochLoop, StepLoop

    name, kind = ("step", StepLoop) if num_envs * steps == 1 else ("epoch", EpochLoop)
    return kind(GYMNAX[env_id], num_envs, steps, timesteps, SimpleNamespace(**JAX_SETTINGS[name] | changes))


@dataclass(frozen=True, kw_only=True)
class Solving:
    """When to stop training: `solved`, given a mean return and the timesteps so far, says whether to."""

    env_id: str
    seed: int
    episodes: int
    """Of an evaluation."""
    interval: int
    """Timesteps between evaluations."""
    solved: Callable[[float, int], bool]


def solve_with_jax_loop(sizes: tuple[int, int], timesteps: int, task: Solving) -> None:
    """Train the loop of so many environments and steps a batch, in a run of so many timesteps."""
    import jax

    loop = make_jax_loop(task.env_id, *sizes, timesteps)
    carry, updates, done = loop.init(task.seed), -(-task.interval // math.prod(sizes)), 0
    while done < timesteps:
        carry, done = loop.train(carry, updates), done + updates * math.prod(sizes)
        if task.solved(float(loop.score(carry, jax.random.key(1_000 + task.seed + done), task.episodes)), done):
            break


def solve_with_rejax(task: Solving) -> None:
    """Train PPO with the settings of rejax's own configs/gymnax."""
    import jax
    from rejax import PPO
    from rejax.evaluate import evaluate

    settings = dict(REJAX[task.env_id])
    timesteps, size = settings.pop("timesteps"), settings["num_envs"] * settings["num_steps"]
    ppo = PPO.create(env=GYMNAX[task.env_id], **settings)
    updates = -(-task.interval // size)
    train = rejax_training(ppo, updates)

    def mode(state: Any, observation: Any, key: Any) -> Any:
        if ppo.normalize_observations:
            observation = ppo.normalize_obs(state.obs_rms_state, observation)
        _, kept = ppo.actor.apply(state.actor_ts.params, observation[None], key, capture_intermediates=True)
        outputs = kept["intermediates"]["action_logits" if ppo.discrete else "action_mean"]["__call__"][0][0]
        return outputs.argmax() if ppo.discrete else outputs.clip(ppo.action_space.low, ppo.action_space.high)

    def play(state: Any, key: Any) -> Any:
        return evaluate(partial(mode, state), key, ppo.env, ppo.env_params, task.episodes)[1].mean()

    score, state, done = jax.jit(play), ppo.init_state(jax.random.key(task.seed)), 0
    while done < timesteps:
        state, done = train(state), done + updates * size
        if task.solved(float(score(state, jax.random.key(1_000 + task.seed + done))), done):
            break


def solve_with_stable_baselines3(algorithm: str, task: Solving) -> None:
    """Train A2C or PPO with rl-baselines3-zoo's settings (hyperparams/a2c.yml, ppo.yml)."""
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    import environments  # noqa: F401 (registers Pendulum-v0)

    settings = dict(ZOO[algorithm, task.env_id])
    num_envs, timesteps, normalized = (settings.pop(name) for name in ("num_envs", "timesteps", "normalized"))
    env: Any = make_vec_env(task.env_id, num_envs, seed=task.seed)
    evaluation_env: Any = make_vec_env(task.env_id, 10, seed=1_000 + task.seed)
    if normalized:
        env = VecNormalize(env, gamma=settings["gamma"])
        evaluation_env = VecNormalize(evaluation_env, training=False, norm_reward=False)

    class Evaluate(BaseCallback):
        def _on_step(self) -> bool:
            if self.num_timesteps % task.interval >= num_envs:
                return True
            if normalized:
                evaluation_env.obs_rms = env.obs_rms
            score: Any = evaluate_policy(self.model, evaluation_env, task.episodes, warn=False)[0]
            return not task.solved(score, self.num_timesteps)

    model = getattr(stable_baselines3, algorithm)("MlpPolicy", env, seed=task.seed, device="cpu", **settings)
    model.learn(timesteps, callback=Evaluate())


def train_stable_baselines3(env_id: str, num_envs: int, steps: int, timesteps: int) -> None:
    """A2C with normalized observations and rewards."""
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    A2C("MlpPolicy", VecNormalize(make_vec_env(env_id, num_envs)), n_steps=steps, device="cpu").learn(timesteps)
