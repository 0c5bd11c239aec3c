"""The epoch update on a GPU: where there is one, as a person would run it; where not, what can be known without."""

import json
import warnings

import pytest
import torch
from conftest import EPOCH, EVALUATE
from gymnasium import spaces

import a2c_algorithm_epoch_update as epoch
from environments import ActionMap, make_vector_env, reset_all
from networks import ObservationLayout
from training import ranks

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: --device cuda was not run")
SIZES = {"num_envs": 4, "sample_size": 32, "critic_updates": 2}
SPACES = {"Pendulum-v0": spaces.Box(-2.0, 2.0, (1,)), "CartPole-v1": spaces.Discrete(2)}


@pytest.mark.parametrize("name", SPACES)
def test_everything_lives_on_the_device(name):
    """In place of a GPU, PyTorch's device of tensors without numbers: they cannot be read, nor mixed with others."""
    config = epoch.Config(env=name, device="meta", compile=False, **SIZES)
    learner = epoch.A2C(config, ObservationLayout(3), ActionMap(SPACES[name]))
    noise = learner.actor.network.noise(8, 4)
    if not learner.action_map.continuous:
        noise = epoch.repeat_noise(noise, 0.5)
    observations, numbers = torch.zeros(8, 4, 3, device="meta"), torch.zeros(8, 4, device="meta")
    acted = [learner.act(seen, step_noise) for seen, step_noise in zip(observations, noise, strict=True)]
    actions = torch.stack([actions for actions, _ in acted])
    batch = epoch.Batch(observations, actions, numbers, observations, numbers, numbers)
    lr_scale = torch.ones((), device="meta")
    states, returns, metrics = learner.update_actor(batch, lr_scale)
    metrics |= learner.update_critic(states, returns, lr_scale)
    results = [states, returns, *metrics.values(), *acted[0]]
    assert {tensor.device.type for tensor in results} == {"meta"}


def test_each_rank_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(ranks.dist, "init_process_group", lambda *args, **options: chosen.append(args))
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks.atexit, "register", lambda function: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    ranks.Ranks.started("cuda")
    assert chosen == [1, ("cpu:gloo,cuda:nccl",)]
    with pytest.raises(ranks.RankError, match="rank 5 needs a GPU of its own"):
        ranks.Ranks.started("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ranks.RankError, match="no more ranks than GPUs"):
        ranks.Ranks.started("cuda")


@needs_gpu
def test_a_run_on_a_gpu(script, tmp_path):
    """Trains, resumes and plays. A GPU's sums are not the CPU's, to the bit: what counts is that it learns."""
    flags = ["--env", "CartPole-v1", "--device", "cuda", "--run-dir", tmp_path / "run", "--total-timesteps"]
    assert script(EPOCH, *flags, 30_000).returncode == 0
    assert script(EPOCH, "--resume", tmp_path / "run", "--total-timesteps", 60_000).returncode == 0
    result = script(EVALUATE, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["mean_return"] > 400


@needs_gpu
def test_a_rollout_waits_for_the_gpu_only_for_actions():
    config = epoch.Config(env="Pendulum-v0", device="cuda", compile=False, **SIZES)
    envs = make_vector_env(config.env, config.num_envs)
    learner = epoch.A2C(config, ObservationLayout(3), ActionMap(envs.single_action_space))
    observations = reset_all(envs, 0)

    class NoRun:
        progress = 0.0
        generator = torch.Generator("cuda")

        def __getattr__(self, name):
            return lambda *args: None

    epoch.collect(envs, observations, learner, NoRun())  # what is set up at the first call
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        epoch.collect(envs, observations, learner, NoRun())
        torch.cuda.set_sync_debug_mode("default")
    waits = [warning for warning in caught if "called a synchronizing" in str(warning.message)]
    assert len(waits) == config.sample_size // config.num_envs
