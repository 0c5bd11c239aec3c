"""The trained policies that the project ships play as they did where they were trained."""

import json

import pytest
from conftest import EVALUATE, PROJECT

LEAST = {"Ant-v4": 4_000.0, "Humanoid-v4": 5_000.0, "Pendulum-v0": -250.0}


def test_every_policy_has_a_least_return():
    assert {path.name for path in (PROJECT / "policies").iterdir()} == LEAST.keys()
    assert sum(path.stat().st_size for path in (PROJECT / "policies").rglob("*") if path.is_file()) < 2e6


def test_a_window_without_a_screen_is_a_line(forked, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    result = forked(EVALUATE, PROJECT / "policies" / "Humanoid-v4", "--render")
    assert result.returncode == 2
    assert "--render failed: there is no screen; use --video FILE.mp4" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAST)
def test_a_policy_plays_at_once(forked, name):
    result = forked(EVALUATE, PROJECT / "policies" / name, "--episodes", 5)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["mean_return"] > LEAST[name]
