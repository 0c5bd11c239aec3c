"""Imports run one way, from a layer to those below it, and nothing optional is imported before it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EPOCH, PROJECT, STEP

LAYERS = [
    ["environments", "networks", "utils"],
    ["training"],
    ["a2c_algorithm_epoch_update", "a2c_algorithm_step_update", "compare", "evaluate"],
    ["benchmarks"],
]
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names}
ALONE = {"networks": set(), "utils": set(), "environments": {"environments", "networks"}}
"""What each part of the lowest layer may import of the project."""
MODULES = [path.relative_to(PROJECT) for path in PROJECT.rglob("*.py") if path.relative_to(PROJECT).parts[0] != "tests"]
MODULES = [path for path in MODULES if path.parts[0].removesuffix(".py") in LAYER]


def imported(path: Path) -> set[str]:
    """The top-level names of all modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse((PROJECT / path).read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} has a relative import"
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_module_imports_from_a_layer_above(path):
    own = path.parts[0].removesuffix(".py")
    ours = imported(path) & LAYER.keys()
    assert {name for name in ours if LAYER[name] > LAYER[own]} == set()
    if own in ALONE:
        assert ours <= ALONE[own]
    if LAYER[own] == 2:  # the scripts and commands do not know each other
        assert not {name for name in ours if LAYER[name] == 2} - {own}


def test_every_module_has_a_layer():
    names = {path.stem for path in PROJECT.glob("*.py")} | {path.parent.name for path in PROJECT.glob("*/__init__.py")}
    assert names - {"tests"} == set(LAYER)


def test_a_script_is_read_in_one_sitting_and_no_plumbing_is_longer():
    lengths = {path.name: len((PROJECT / path).read_text().splitlines()) for path in MODULES}
    scripts = [lengths[EPOCH], lengths[STEP]]
    assert max(scripts) < 350
    plumbing = [path.name for path in MODULES if path.parts[0] in ("environments", "training")]
    assert max(lengths[name] for name in plumbing) <= min(scripts)


@pytest.mark.slow
@pytest.mark.parametrize("script", [EPOCH, STEP])
def test_cartpole_is_trained_where_mujoco_is_not_installed(tmp_path, script):
    for name in ("mujoco", "envpool"):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('No module named {name}')\n")
    code = (
        f"import sys, runpy; sys.path[:0] = [{str(tmp_path)!r}, {str(PROJECT)!r}]; sys.argv[1:] = "
        f"['--env', 'CartPole-v1', '--total-timesteps', '512', '--run-dir', 'run'];"
        f"runpy.run_path({str(PROJECT / script)!r}, run_name='__main__')"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert result.returncode == 0, result.stderr
