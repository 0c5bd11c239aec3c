"""Runs the scripts as a person would: as processes, in a directory of their own."""

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))
EPOCH, STEP, EVALUATE = "a2c_algorithm_epoch_update.py", "a2c_algorithm_step_update.py", "evaluate.py"

torch.set_num_threads(1)  # two workers share the machine, and no threads are lost where a test forks

Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Run a script with arguments in an empty directory, where its modules find what the test puts there."""

    def run(name: str, *args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, PROJECT / name, *map(str, args)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run


def sealed(state: object) -> bytes:
    """The bytes of a checkpoint, with the digest that says it is whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
