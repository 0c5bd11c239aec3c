"""`--help` as a newcomer reads it, and what a run says at its end."""

import dataclasses
import re

import numpy as np
import pytest
from conftest import EPOCH, EVALUATE, STEP

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from training.cli import attribute_docstrings
from training.report import still_rising


@pytest.mark.parametrize(("name", "script"), [(EPOCH, epoch), (STEP, step)])
def test_help_begins_with_the_algorithm_and_shows_every_setting_once(forked, monkeypatch, name, script):
    monkeypatch.setenv("COLUMNS", "200")
    result = forked(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.findall(r"\w+ options", result.stdout) == ["algorithm options", "networks options", "run options"]
    flags = re.findall(r"^[^\w-]*(--[a-z][\w-]*)", result.stdout, re.MULTILINE)
    expected = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(script.Config)}
    assert sorted(flags) == sorted(expected)
    algorithm = result.stdout.partition("algorithm options")[2].partition("networks options")[0]
    assert "--gamma" in algorithm
    assert "--run-dir" not in algorithm


@pytest.mark.parametrize("script", [epoch, step])
def test_every_setting_has_a_help_text_of_its_own(script):
    docs = attribute_docstrings(script.Config)
    texts = [docs[field.name] for field in dataclasses.fields(script.Config)]
    assert all(text[0].isupper() and text.endswith(".") for text in texts)
    assert len(set(texts)) == len(texts)


def test_help_shows_defaults(forked, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert "(default: 0.85)" in forked(STEP, "--help").stdout
    assert "(default: 128)" in forked(EPOCH, "--help").stdout
    assert "--video" in forked(EVALUATE, "--help").stdout


def test_a_run_that_was_too_short_is_recognized():
    timesteps, noise = np.arange(1, 201) * 100, np.random.default_rng(0).normal(0, 20, 200)
    for returns, rising in (
        (np.linspace(0, 100, 200) + noise, True),
        (np.minimum(np.linspace(0, 300, 200), 100) + noise, False),
        (noise, False),
        (np.linspace(100, 0, 200) + noise, False),
    ):
        assert still_rising(timesteps, returns, 20_000) is rising
    assert not still_rising([], [], 20_000)
