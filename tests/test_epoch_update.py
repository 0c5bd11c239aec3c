"""The epoch update: where its gradient goes, and what becomes of a batch."""

import copy
import gc
import signal
import weakref

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions
from torch.nn.utils import parameters_to_vector, vector_to_parameters

import a2c_algorithm_epoch_update as epoch
import environments
from environments import ActionMap
from networks import CategoricalActor, Critic, GaussianActor, NetworkSettings, ObservationLayout
from training import Run
from utils import RewardNormalizer, gae, kl_divergence, repeat_noise

CONTINUOUS, DISCRETE = spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 4])


def actor_and_batch(space, batch=7):
    """An actor in float64, whose weights are not all near zero, and random transitions."""
    torch.manual_seed(0)
    if space is CONTINUOUS:
        actor, actions = (
            GaussianActor(ObservationLayout(3), [True, False], NetworkSettings(hidden_sizes=(5, 4), mean_limit=1.0)),
            torch.randn(batch, 2, dtype=torch.float64),
        )
    else:
        actor = CategoricalActor(ObservationLayout(3), [2, 4], NetworkSettings(hidden_sizes=(5, 4)))
        actions = torch.stack([torch.randint(0, n, (batch,)) for n in (2, 4)], dim=1)
    actor.double()
    for parameter in actor.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return actor, torch.randn(batch, 3, dtype=torch.float64), actions, torch.randn(batch, dtype=torch.float64)


@pytest.mark.parametrize("space", [CONTINUOUS, DISCRETE], ids=["gaussian", "categorical"])
@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
def test_policy_gradient_equals_finite_differences(space, ent_coef):
    actor, *batch = actor_and_batch(space)

    def loss():
        observations, actions, advantages = batch
        return epoch.policy_loss(actor(observations), actions, advantages, ent_coef)[0]

    gradients = torch.autograd.grad(loss(), list(actor.parameters()))
    for parameter, gradient in zip(actor.parameters(), gradients, strict=True):
        numeric = torch.zeros_like(parameter)
        flat, step = parameter.data.view(-1), 1e-6
        for i in range(flat.numel()):
            value = flat[i].item()
            flat[i] = value + step
            above = loss().item()
            flat[i] = value - step
            below = loss().item()
            flat[i] = value
            numeric.view(-1)[i] = (above - below) / (2 * step)
        torch.testing.assert_close(gradient, numeric, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("space", [CONTINUOUS, DISCRETE], ids=["gaussian", "categorical"])
def test_log_prob_is_the_density_of_the_distribution(space):
    """Against NumPy, written out; the Gaussian's is that of the sample before it is clipped."""
    actor, observations, actions, advantages = actor_and_batch(space)
    loss, entropy = epoch.policy_loss(actor(observations), actions, advantages, 0.0)
    with torch.no_grad():
        if space is CONTINUOUS:
            z = (actions - actor(observations).mode) / actor.log_std.exp()
            log_prob = (-0.5 * z**2 - actor.log_std - 0.5 * np.log(2 * np.pi)).sum(1)
            expected_entropy = (0.5 * np.log(2 * np.pi * np.e) + actor.log_std).sum()
        else:
            first, second = actor.logits(observations).unflatten(-1, (2, 4)).unbind(1)
            tables = [first[:, :2].log_softmax(1), second.log_softmax(1)]  # the first choice has only two
            log_prob = sum(t.gather(1, actions[:, i : i + 1])[:, 0] for i, t in enumerate(tables))
            expected_entropy = sum(-(t.exp() * t).sum(1) for t in tables).mean()
    torch.testing.assert_close(loss, -(log_prob * advantages).mean())
    torch.testing.assert_close(entropy, expected_entropy)


def learner_for(name="Pendulum-v0", **settings):
    config = epoch.Config(env=name, num_envs=4, sample_size=32, compile=False, **settings)
    envs = environments.make_vector_env(name, 4)
    torch.manual_seed(0)
    action_map = ActionMap(envs.single_action_space)
    return envs, epoch.A2C(config, environments.make_maps(envs)[1].layout, action_map)


@pytest.mark.parametrize("name", ["Pendulum-v0", "CartPole-v1"])
def test_every_parameter_of_the_actor_moves_with_the_first_update(name, tmp_path):
    envs, learner = learner_for(name, run_dir=tmp_path / "run", img_dir=tmp_path)
    before = {n: p.detach().clone() for n, p in learner.actor.network.named_parameters()}
    with Run(learner.config, learner.parts, envs) as run:
        batch, _ = epoch.collect(envs, environments.reset_all(envs, 0), learner, run)
        learner.update(batch, 1.0)
    for n, parameter in learner.actor.network.named_parameters():
        assert (parameter != before[n]).any(), n


def test_batch_is_on_policy(tmp_path):
    """Played again with the policy that collected it, the batch gives the same actions: nothing has moved between."""
    envs, learner = learner_for(run_dir=tmp_path / "run", img_dir=tmp_path)
    with Run(learner.config, learner.parts, envs) as run:
        run.generator.manual_seed(3)
        batch, _ = epoch.collect(envs, environments.reset_all(envs, 0), learner, run)
    generator = torch.Generator().manual_seed(3)
    policy, states = learner.actor.network, learner.obs_normalizer.normalize(batch.observations)
    noise = repeat_noise(policy.noise(8, 4, generator=generator), learner.config.repeat_noise, generator)
    torch.testing.assert_close(batch.actions, policy.sample(policy(states), noise))
    assert batch.observations.shape == (8, 4, 3)


def test_a_batch_is_normalized_by_the_statistics_that_the_policy_acted_by(tmp_path, monkeypatch):
    """By newer ones, V(s') and V(s) would differ where s' is s, which costs much of the return."""
    envs, learner = learner_for(run_dir=tmp_path / "run", img_dir=tmp_path)
    given, critic = [], learner.critic
    monkeypatch.setattr(learner, "critic", lambda states: given.append(states) or critic(states))
    seen = []
    with Run(learner.config, learner.parts, envs) as run:
        observations = environments.reset_all(envs, 0)
        for _ in range(3):
            batch, observations = epoch.collect(envs, observations, learner, run)
            learner.update_actor(batch, torch.tensor(1.0))
            for states, array in zip(given[-2:], (batch.observations, batch.next_observations), strict=True):
                raw = array.numpy()
                if seen:
                    data = np.concatenate(seen).astype(np.float64)
                    raw = np.clip((raw - data.mean(0)) / np.sqrt(data.var(0) + 1e-8), -10, 10)
                np.testing.assert_allclose(states, raw, rtol=1e-4, atol=1e-4)
            seen.append(batch.observations.flatten(0, 1).numpy())


@pytest.mark.parametrize(("env", "lr_scale"), [("CartPole-v1", 1.0), ("CartPole-v1", 0.3), ("Pendulum-v0", 1.0)])
def test_an_update_is_one_step_of_torchs_optimizer_for_the_actor_and_several_for_the_critic(tmp_path, env, lr_scale):
    """Against torch's own optimizer, layer by layer, on a copy of both networks, and the limits of its steps."""
    paths = {"run_dir": tmp_path / "run", "img_dir": tmp_path}
    envs, learner = learner_for(env, critic_updates=3, ent_coef=0.01, max_kl=1e-4 * lr_scale, **paths)
    copies = [copy.deepcopy(network.network) for network in (learner.actor, learner.critic)]
    rates = [rate * 32**0.5 * lr_scale for rate in (learner.config.actor_lr, learner.config.critic_lr)]
    betas = (0.0, 1 - learner.config.sample_size / 51_200)
    optimizers = [torch.optim.Adam(c.parameters(), lr, betas) for c, lr in zip(copies, rates, strict=True)]
    actor, critic = copies
    lengths: list[float] = []
    divergences: list[float] = []
    reward_normalizer = RewardNormalizer(4, 0.995)
    with Run(learner.config, learner.parts, envs) as run:
        observations = environments.reset_all(envs, 0)
        for _ in range(4):
            batch, observations = epoch.collect(envs, observations, learner, run)
            done = torch.maximum(batch.terminated, batch.truncated)
            with torch.no_grad():
                states = learner.obs_normalizer.normalize(batch.observations)
                next_states = learner.obs_normalizer.normalize(batch.next_observations)
                values, next_values = critic(states), critic(next_states)
                reward_normalizer.update_returns(batch.rewards, done)
                rewards = reward_normalizer.normalize(batch.rewards)
                advantages, returns = gae(rewards, values, next_values, batch.terminated, batch.truncated, 0.995, 0.9)
                advantages = advantages - advantages.median()
            policy = actor(states)
            loss = -(policy.log_prob(batch.actions) * advantages).mean() - 0.01 * policy.entropy().mean()
            norms = []
            for network, optimizer, rate, steps in zip(copies, optimizers, rates, (1, 3), strict=True):
                for _ in range(steps):
                    before = parameters_to_vector(network.parameters()).detach()
                    if network is critic:
                        loss = (critic(states) - returns).square().mean()
                    optimizer.zero_grad()
                    loss.backward()
                    norms.append(torch.nn.utils.get_total_norm([p.grad for p in network.parameters()]).item())
                    optimizer.step()
                    step = parameters_to_vector(network.parameters()).detach() - before
                    lengths.append((step.norm() / len(step) ** 0.5 / rate).item())
                    step /= max(1.0, lengths[-1])
                    vector_to_parameters(before + step, network.parameters())
                    if network is actor:
                        with torch.no_grad():
                            divergences.append(distributions.kl_divergence(policy, actor(states)).mean().item())
                        fraction = min(1.0, (learner.config.max_kl / divergences[-1]) ** 0.5)
                        vector_to_parameters(before + fraction * step, network.parameters())
            metrics = learner.update(batch, lr_scale)
            np.testing.assert_allclose((metrics["actor_grad_norm"], metrics["critic_grad_norm"]), norms[:2], rtol=1e-3)
    for mine, reference in zip((learner.actor, learner.critic), copies, strict=True):
        for a, b in zip(mine.network.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert min(lengths) < 0.99 < 1.01 < max(lengths)  # some were clipped
    assert min(divergences) < learner.config.max_kl < max(divergences)  # some were shortened


def test_a_batch_gives_one_actor_step_and_is_gone_afterwards(tmp_path, monkeypatch):
    config = epoch.Config(
        num_envs=4, sample_size=32, critic_updates=3, total_timesteps=160, run_dir=tmp_path / "run", img_dir=tmp_path
    )
    alive, seen = [], []
    collect, update = epoch.collect, epoch.A2C.update

    def watched_collect(*args):
        gc.collect()
        alive.append(sum(reference() is not None for reference in seen))
        return collect(*args)

    def watched_update(self, batch, lr_scale):
        seen.extend(weakref.ref(array) for array in batch)
        return update(self, batch, lr_scale)

    monkeypatch.setattr(epoch, "collect", watched_collect)
    monkeypatch.setattr(epoch.A2C, "update", watched_update)
    epoch.train(config)
    assert len(seen) == 5 * 6
    assert alive == [0] * 5


def test_the_next_episode_does_not_change_what_is_learned_from_this_one(tmp_path, monkeypatch):
    """Through the whole update: with the next episode's rewards changed, this one's advantages are the same."""
    envs, learner = learner_for("CartPole-v1", reward_norm=False, run_dir=tmp_path / "run", img_dir=tmp_path)
    with Run(learner.config, learner.parts, envs) as run:
        observations = environments.reset_all(envs, 0)
        batch, observations = epoch.collect(envs, observations, learner, run)
        while not batch.terminated[:-1].any():
            batch, observations = epoch.collect(envs, observations, learner, run)
    t, n = batch.terminated[:-1].nonzero()[0]
    changed = batch.rewards.clone()
    changed[t + 1 :, n] += 50.0
    advantages = []

    def watched_gae(*args):
        result = gae(*args)
        advantages.append(result[0])
        return result

    monkeypatch.setattr(epoch, "gae", watched_gae)
    for rewards in (batch.rewards, changed):
        _, other = learner_for("CartPole-v1", reward_norm=False)
        other.update(batch._replace(rewards=rewards), 1.0)
    assert torch.equal(advantages[0][: t + 1, n], advantages[1][: t + 1, n])
    assert (advantages[0][t + 1 :, n] != advantages[1][t + 1 :, n]).all()


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_repeated_noise_is_drawn_as_before_and_repeats_as_often_as_asked(probability):
    torch.manual_seed(0)
    noise = torch.randn(400, 50, 2)
    repeated = repeat_noise(noise, probability)
    torch.testing.assert_close(repeated[0], noise[0])
    repeats = (repeated[1:] == repeated[:-1]).all(-1)
    assert abs(repeats.double().mean() - probability) < 0.02
    assert torch.equal(repeated[1:][~repeats], noise[1:][~repeats])
    if probability < 1:
        torch.testing.assert_close(repeated.std(), torch.tensor(1.0), atol=0.03, rtol=0)


@pytest.mark.parametrize("masked", [0, 6])
def test_the_divergence_of_policies_is_that_of_torch(masked):
    torch.manual_seed(0)
    layout = ObservationLayout(8, mask_size=masked)
    states = torch.cat([torch.randn(99, 8 - masked), torch.tensor([[1, 0, 0, 1, 1, 1.0]] * 99)[:, :masked]], dim=-1)
    actors = [CategoricalActor(layout, (2, 4), NetworkSettings()) for _ in range(2)]
    if not masked:
        actors += [GaussianActor(layout, (True, False), NetworkSettings()) for _ in range(2)]
        actors[3].log_std.data += 0.5
    for old, new in zip(actors[::2], actors[1::2], strict=True):
        new.load_state_dict({name: value + 0.3 * torch.randn_like(value) for name, value in new.state_dict().items()})
        expected = distributions.kl_divergence(old(states), new(states))
        torch.testing.assert_close(kl_divergence(old(states), new(states)), expected, atol=1e-5, rtol=1e-4)
        assert expected.mean() > 0.001
        new.load_state_dict({name: value + 1e-4 * torch.randn_like(value) for name, value in old.state_dict().items()})
        assert (kl_divergence(old(states), new(states)) >= 0).all()  # despite rounding


def test_the_divergence_is_finite_where_an_action_becomes_impossible():
    old, new = (
        distributions.Independent(distributions.Categorical(logits=torch.tensor([[0.0, logit]])), 1)
        for logit in (-80.0, -120.0)
    )
    assert distributions.kl_divergence(old, new).isinf()
    assert kl_divergence(old, new).item() == pytest.approx(40 * np.exp(-80), rel=1e-3)


@pytest.mark.parametrize("name", ["Pendulum-v0", "CartPole-v1"])
def test_a_step_is_shortened_to_the_bound_and_undone_where_the_divergence_is_nan(name, tmp_path, monkeypatch):
    envs, learner = learner_for(name, max_kl=1e-6, run_dir=tmp_path / "run", img_dir=tmp_path)
    with Run(learner.config, learner.parts, envs) as run, torch.no_grad():
        batch, _ = epoch.collect(envs, environments.reset_all(envs, 0), learner, run)
        states = learner.obs_normalizer.normalize(batch.observations)
        before = learner.actor(states)
        with torch.enable_grad():
            learner.update(batch, 1.0)
        divergence = distributions.kl_divergence(before, learner.actor(states)).double().mean()
        assert divergence.item() == pytest.approx(1e-6, rel=0.2)
        monkeypatch.setattr(epoch, "kl_divergence", lambda old, _: torch.full(old.batch_shape, torch.nan))
        theta = learner.actor.theta.clone()
        with torch.enable_grad():
            learner.update(batch, 1.0)
    assert torch.equal(learner.actor.theta, theta)


def test_noise_is_repeated_less_and_less(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(epoch, "repeat_noise", lambda noise, probability, _: asked.append(probability) or noise)
    for name, entries in (("Pendulum-v0", 1), ("CartPole-v1", 1), ("Reacher-v4", 2)):
        asked.clear()
        settings = {"num_envs": 4, "sample_size": 32, "total_timesteps": 128}
        epoch.train(epoch.Config(env=name, run_dir=tmp_path / name, img_dir=tmp_path, **settings))
        assert asked == pytest.approx([0.9**entries * (1 - progress) ** 2 for progress in (0, 0.25, 0.5, 0.75)])


def test_a_signal_is_heeded_once_a_timestep(tmp_path):
    """And brings a checkpoint, but no row of the log, which a run that goes on has later, and only once."""
    config = epoch.Config(run_dir=tmp_path / "run", img_dir=tmp_path)
    with Run(config, {}, environments.make_env("Pendulum-v0")) as run:
        run.count(16)
        signal.raise_signal(signal.SIGINT)
        assert (run.unfinished, run.log_due, run.save_due) == (True, False, False)
        run.count(16)
        assert (run.unfinished, run.log_due, run.save_due) == (False, False, True)
    assert run.exit_status == 128 + signal.SIGINT


def test_critic_regresses_on_the_returns():
    critic = Critic(ObservationLayout(3), NetworkSettings(hidden_sizes=(16, 16)))
    assert critic(torch.randn(5, 4, 3)).shape == (5, 4)


def test_layer_norm_makes_the_actor_blind_to_the_scale_of_its_first_layer():
    actor = GaussianActor(ObservationLayout(3), [True], NetworkSettings(hidden_sizes=(16, 16)))
    actor.log_std.data.zero_()
    observations = torch.randn(4, 3)
    before = actor(observations).mode
    first = actor.mean[0]
    first.weight.data *= 100
    first.bias.data *= 100
    torch.testing.assert_close(actor(observations).mode, before, atol=1e-4, rtol=1e-3)


def test_a_mean_stays_within_its_limit():
    actor = GaussianActor(ObservationLayout(3), [True, False], NetworkSettings(hidden_sizes=(16,), mean_limit=2.0))
    actor.mean[-1].weight.data *= 1e4
    mean = actor(torch.randn(100, 3)).mode
    assert 1 < mean[:, 0].abs().max() <= 2
    assert mean[:, 1].abs().max() > 2
    gradients = torch.autograd.grad(mean.sum(), list(actor.mean.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_noise_is_not_what_the_networks_were_initialized_from(tmp_path, seed):
    config = epoch.Config(run_dir=tmp_path / "run", img_dir=tmp_path, seed=seed)
    with Run(config, {}, environments.make_env("Pendulum-v0")) as run:
        noise = torch.randn(5, generator=run.generator)
    assert not torch.equal(noise, torch.randn(5, generator=torch.Generator().manual_seed(seed)))


def test_a_choice_that_is_not_there_is_never_taken():
    actor = CategoricalActor(ObservationLayout(2), [2, 5], NetworkSettings(hidden_sizes=(8,)))
    samples = actor.sample(actor(torch.randn(2000, 2)), actor.noise(2000))
    assert samples[:, 0].max() == 1
    assert samples[:, 1].max() == 4


@pytest.mark.parametrize("space", [CONTINUOUS, DISCRETE], ids=["gaussian", "categorical"])
def test_samples_have_the_distribution_that_the_log_prob_is_of(space):
    actor, observations, *_ = actor_and_batch(space, batch=1)
    distribution, count = actor(observations), 40_000
    samples = actor.sample(distribution, actor.noise(count))
    assert samples.shape == (count, 2)
    if space is CONTINUOUS:
        torch.testing.assert_close(samples.mean(0), distribution.mean[0], atol=0.03, rtol=0)
        torch.testing.assert_close(samples.std(0), distribution.stddev[0], atol=0.03, rtol=0.02)
    else:
        frequencies = torch.stack([(samples == choice).double().mean(0) for choice in range(4)], dim=1)
        torch.testing.assert_close(frequencies, distribution.base_dist.probs[0], atol=0.01, rtol=0)
