"""Runs the scripts as a person would: as processes, in a directory of their own."""

import contextlib
import hashlib
import io
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

PROJECT = Path(__file__).parent.parent
sys.path.insert(0, str(PROJECT))
EPOCH, STEP, EVALUATE = "a2c_algorithm_epoch_update.py", "a2c_algorithm_step_update.py", "evaluate.py"

from training.checkpoint import load_checkpoint  # noqa: E402  (imports PyTorch, also for the forked ones)

os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp())  # of all workers; not that of the user
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


@pytest.fixture
def forked(tmp_path: Path) -> Script:
    """As `script`, in a process forked from this one, which has imported PyTorch and all else already."""

    def run(name: str, *args: object) -> subprocess.CompletedProcess[str]:
        command = [name, *map(str, args)]
        (tmp_path.parent / "forked").mkdir(exist_ok=True)
        out, err = (tmp_path.parent / "forked" / f"{tmp_path.name}.{stream}" for stream in ("out", "err"))
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for number, path in ((1, out), (2, err)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
                sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
                os.chdir(tmp_path)
                sys.path.insert(0, str(tmp_path))
                os.environ["PYTHONPATH"] = str(tmp_path)
                sys.argv = command
                runpy.run_path(str(PROJECT / name), run_name="__main__")
                status = 0
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush(), sys.stderr.flush()
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())

    return run


def sealed(state: object) -> bytes:
    """The bytes of a checkpoint, with the digest that says it is whole."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()


def check_resuming(script: ModuleType, tmp_path: Path, **settings: Any) -> None:
    """A run that is stopped after about 1,000 timesteps and resumed ends with the same parameters, to the bit.

    The uninterrupted run stays in `tmp_path / "whole"`.
    """
    for name in ("whole", "short"):
        config = script.Config(run_dir=tmp_path / name, img_dir=tmp_path, **settings)
        script.train(config, callback=None if name == "whole" else lambda run, scalars: run.stop())
    assert str(settings["total_timesteps"]) not in (tmp_path / "short" / "updates.csv").read_text()
    script.train(script.Config(resume=tmp_path / "short", img_dir=tmp_path, quiet=True))
    whole, short = (load_checkpoint(tmp_path / name) for name in ("whole", "short"))
    for part in ("actor", "critic", "obs_normalizer"):
        torch.testing.assert_close(short[part], whole[part], rtol=0, atol=0)


@pytest.fixture(autouse=True)
def forget_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Forget the modules that a test has written: compiled code is kept by the sources of all that are imported."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__dict__", {}).get("__file__", "")).startswith(str(tmp_path_factory.getbasetemp())):
            del sys.modules[name]
