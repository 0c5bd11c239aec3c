"""A2C and PPO of other libraries, trained for `benchmarks.speed`: all optional, and imported where they are used."""

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym


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


def torchrl(env_id: str, num_envs: int, steps: int, timesteps: int) -> float:
    """Timesteps a second after a warm-up."""
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


def solve_with_stable_baselines3(
    algorithm: str, seed: int, episodes: int, interval: int, solved: Callable[[float, int], bool]
) -> None:
    """Train on Pendulum-v0 until it is solved, with rl-baselines3-zoo's settings for Pendulum-v1 (a2c.yml, ppo.yml).

    Args:
        algorithm: A2C or PPO.
        episodes, interval: of the evaluations, and timesteps between them.
        solved: of a score and the timesteps; whether to stop.
    """
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
            if self.num_timesteps % interval >= env.num_envs:
                return True
            if a2c:
                evaluation_env.obs_rms = env.obs_rms
            score: Any = evaluate_policy(self.model, evaluation_env, episodes, warn=False)[0]
            return not solved(score, self.num_timesteps)

    model = getattr(stable_baselines3, algorithm)("MlpPolicy", env, **settings)
    model.learn(1_000_000 if a2c else 100_000, callback=Evaluate())


def train_stable_baselines3(env_id: str, num_envs: int, steps: int, timesteps: int) -> None:
    """A2C with normalized observations and rewards."""
    import torch
    from stable_baselines3 import A2C
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(1)
    A2C("MlpPolicy", VecNormalize(make_vec_env(env_id, num_envs)), n_steps=steps, device="cpu").learn(timesteps)
