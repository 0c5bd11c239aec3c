"""Settings for named environments: which they are, and that a person's own win over them."""

import json
import tomllib

import pytest
from conftest import EPOCH, PROJECT

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
import runs

CONFIGS = {config.script: config for config in (epoch.Config, step.Config)}
PRESETS = tomllib.loads((PROJECT / "presets.toml").read_text())


def test_every_preset_is_of_settings_that_there_are():
    for script, presets in PRESETS.items():
        for environs, settings in presets.items():
            for env in environs.split():
                config = CONFIGS[script].for_env("Pusher-v4" if env == "MuJoCo" else f"{env}-v4")
                config.validate()
                for name, value in settings.items():
                    assert type(getattr(config, name)) is type(getattr(CONFIGS[script](), name)) is type(value), name
                    if env == environs:  # nothing comes after it
                        assert getattr(config, name) == value


@pytest.mark.parametrize("env", ["Swimmer-v4", "Swimmer-v5", "gymnasium.envs.mujoco:Swimmer-v4"])
def test_an_environment_has_its_familys_settings_and_its_own(env):
    assert runs.preset("epoch", env) == PRESETS["epoch"]["MuJoCo"] | PRESETS["epoch"]["Swimmer"]
    assert runs.preset("epoch", "Hopper-v4") == PRESETS["epoch"]["MuJoCo"]
    ant = PRESETS["epoch"]["MuJoCo"] | PRESETS["epoch"]["Ant HalfCheetah Humanoid InvertedDoublePendulum"]
    assert runs.preset("epoch", "Ant-v5") == ant
    assert ant["num_envs"] == PRESETS["epoch"]["Ant HalfCheetah Humanoid InvertedDoublePendulum"]["num_envs"]
    assert runs.preset("epoch", "Pendulum-v0") == runs.preset("epoch", "Mine-v0") == {}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", PRESETS["epoch"]["Swimmer"]["gamma"]),
        ("--gamma 0.95", 0.95),
        (f"--gamma {epoch.Config.gamma}", epoch.Config.gamma),  # which is the default, but was asked for
        ("--no-preset", epoch.Config.gamma),
    ],
)
def test_flags_win(forked, tmp_path, flags, expected):
    run = tmp_path / "run"
    paths = ["--run-dir", str(run), "--img-dir", str(tmp_path)]
    result = forked(EPOCH, "--env", "Swimmer-v4", "--total-timesteps", "32", *flags.split(), *paths)
    assert result.returncode == 0, result.stderr
    config = json.loads((run / "config.json").read_text())
    assert config["gamma"] == expected
    assert ("num_envs" in result.stdout) == ("--no-preset" not in flags)
    assert (config["num_envs"] == epoch.Config.num_envs) == ("--no-preset" in flags)
    resumed = forked(EPOCH, "--resume", str(run), "--total-timesteps", "64", "--img-dir", str(tmp_path))
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((run / "config.json").read_text())["gamma"] == expected


def test_in_python():
    config = epoch.Config.for_env("Swimmer-v4", seed=3, num_envs=8)
    assert (config.gamma, config.seed, config.num_envs) == (PRESETS["epoch"]["Swimmer"]["gamma"], 3, 8)
    assert epoch.Config(env="Swimmer-v4").gamma == epoch.Config.gamma
