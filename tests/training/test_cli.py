"""`--help` as a newcomer reads it."""

import dataclasses
import re

import pytest
from conftest import EPOCH, EVALUATE, STEP

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from training.cli import attribute_docstrings


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
    assert "(default: 0.8)" in forked(STEP, "--help").stdout
    assert "(default: 128)" in forked(EPOCH, "--help").stdout
    assert "--video" in forked(EVALUATE, "--help").stdout
