"""Settings for named environments: which they are, and that a person's own win over them."""

import json
import re
import tomllib

import pytest
from conftest import EPOCH, PROJECT

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from benchmarks import mujoco
from training.experiments import read_csv
from training.settings import preset

pytestmark = pytest.mark.slow

CONFIGS = {config.script: config for config in (epoch.Config, step.Config)}
PRESETS = tomllib.loads((PROJECT / "presets.toml").read_text())


def test_every_preset_is_of_settings_that_there_are():
    for script, presets in PRESETS.items():
        for environs, settings in presets.items():
            for env in environs.split():
                config = CONFIGS[script].for_env(f"{env}-v4")
                config.validate()
                for name, value in settings.items():
                    assert type(getattr(config, name)) is type(getattr(CONFIGS[script](), name)) is type(value), name
                    assert getattr(config, name) == value


def test_every_gain_that_is_written_beside_a_preset_is_what_the_results_say():
    rows = read_csv(mujoco.RESULTS, mujoco.COLUMNS)
    gains = re.findall(r"([\w-]+-v4): ([\d,]+) instead of ([\d,]+)", (PROJECT / "presets.toml").read_text())
    assert {env.removesuffix("-v4") for env, *_ in gains} == set(" ".join(PRESETS["epoch"]).split())
    for env, *said in gains:
        measured = [mujoco.scores_of(rows, "epoch", env, flags) for flags in ("", "--no-preset")]
        assert [len(scores) for scores in measured] == [5, 5]
        assert [f"{scores.mean():,.0f}" for scores in measured] == said, env


@pytest.mark.parametrize("env", ["Swimmer-v4", "Swimmer-v5", "gymnasium.envs.mujoco:Swimmer-v4"])
def test_an_environment_has_its_own_settings_whatever_its_version(env):
    assert preset("epoch", env) == PRESETS["epoch"]["Swimmer"]
    assert preset("epoch", "Ant-v5") == PRESETS["epoch"]["Ant HalfCheetah Humanoid"]
    assert preset("epoch", "HumanoidStandup-v4") == preset("epoch", "Mine-v0") == {}


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
    result = forked(EPOCH, "--env", "Swimmer-v4", "--total-timesteps", "512", *flags.split(), *paths)
    assert result.returncode == 0, result.stderr
    config = json.loads((run / "config.json").read_text())
    assert config["gamma"] == expected
    assert ("settings for Swimmer-v4" in result.stdout) == ("--no-preset" not in flags)
    resumed = forked(EPOCH, "--resume", str(run), "--total-timesteps", "1024", "--img-dir", str(tmp_path))
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads((run / "config.json").read_text())["gamma"] == expected


def test_in_python():
    config = epoch.Config.for_env("Ant-v4", seed=3, num_envs=8)
    assert (config.ent_coef, config.seed, config.num_envs) == (0.0, 3, 8)
    assert epoch.Config(env="Swimmer-v4").gamma == epoch.Config.gamma
