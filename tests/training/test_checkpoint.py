"""What was saved is never damaged, and what is damaged is never loaded."""

import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from conftest import EPOCH, EVALUATE, PROJECT, STEP, sealed

import a2c_algorithm_epoch_update as epoch
import a2c_algorithm_step_update as step
from environments import UsageError
from training import Run, load_policy
from training.checkpoint import FORMAT, load_checkpoint
from training.cli import parse


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 1,024 timesteps with two checkpoints; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    config = epoch.Config(run_dir=folder / "run", img_dir=folder, total_timesteps=1024, checkpoint_interval=512)
    epoch.train(config)
    return folder / "run"


def test_a_checkpoint_is_a_zip_file_and_nothing_else(finished):
    """Its digest is the comment of the archive, not bytes behind it."""
    content = (finished / "checkpoint.pt").read_bytes()
    with zipfile.ZipFile(finished / "checkpoint.pt") as archive:
        assert archive.testzip() is None
        assert archive.comment == hashlib.sha256(content[:-32]).digest()
    end = content.rindex(b"PK\x05\x06")  # end of central directory: 22 bytes and the comment
    assert end + 22 + 32 == len(content)


def replaced(rng, value):
    """A state with one of its parts, chosen by chance, taken away or put for another."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value, key=str))
        value = dict(value)
        if rng.random() < 0.3:
            del value[key]
        else:
            value[key] = replaced(rng, value[key])
        return value
    return rng.choice([[], "text", torch.zeros(3, 5, 7), {"array": torch.zeros(2, 2, 2)}, {"unknown": 1}])


def damage(rng, run):
    """Damage one file of a run, in one of the ways in which files get damaged."""
    path = run / rng.choice(["checkpoint.pt", "checkpoint.pt", "config.json", "episodes.csv", "updates.csv"])
    content = path.read_bytes()
    how = rng.choice(["cut", "flip", "overwrite", "foreign", "gone", "insert", "other"])
    place = rng.randrange(len(content))
    if how == "cut":
        path.write_bytes(content[:place])
    elif how == "flip":
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
    elif how == "overwrite":
        path.write_bytes(content[:place] + bytes(8) + content[place + 8 :])
    elif how == "insert":
        path.write_bytes(content[:place] + rng.randbytes(5) + content[place:])
    elif how == "foreign":
        path.write_bytes(rng.choice([b"", b"null", b"[]", rng.randbytes(500), sealed({"model": torch.zeros(3)})]))
    elif how == "gone":
        path.unlink()
    elif path.name == "checkpoint.pt":
        path.write_bytes(sealed(replaced(rng, torch.load(io.BytesIO(content), weights_only=True))))
    else:
        path.write_bytes(content + b"x" if path.suffix == ".json" else b"0" + content)
    return f"{how} {path.name}"


@pytest.mark.parametrize("seed", range(240))
def test_a_damaged_run_is_refused_and_left_alone(finished, tmp_path, seed, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    what = damage(random.Random(seed), run)
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.name != "lock"}
    monkeypatch.setattr(Run, "__enter__", lambda self: pytest.fail(f"{what} was loaded"))
    with pytest.raises(UsageError) as refusal:
        epoch.train(parse(epoch.Config, ["--resume", str(run), "--total-timesteps", "2048", "--quiet"]))
    assert "\n" not in str(refusal.value)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != "lock"} == before


def test_the_checkpoint_before_is_kept_and_can_be_put_in_place(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "checkpoint.pt").write_bytes(b"broken")
    with pytest.raises(UsageError, match=r"checkpoint.pt is damaged.*checkpoint_previous.pt, the one before"):
        load_policy(run)
    (run / "checkpoint_previous.pt").replace(run / "checkpoint.pt")
    assert load_checkpoint(run)["timestep"] == 512
    resumed = epoch.train(parse(epoch.Config, ["--resume", str(run), "--quiet", "--img-dir", str(tmp_path)]))
    assert resumed.timestep == 1024
    logs = [(folder / "episodes.csv").read_text().splitlines() for folder in (finished, run)]
    whole, repeated = ([row.rpartition(",")[0] for row in log] for log in logs)  # without the time on the clock
    assert whole == repeated


def test_a_checkpoint_of_a_newer_version_is_refused_by_name(forked, finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    state = load_checkpoint(run)
    (run / "checkpoint.pt").write_bytes(sealed(state | {"format": FORMAT + 1}))
    for command in ((EVALUATE, run), (EPOCH, "--resume", run)):
        result = forked(*command)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert "checkpoint.pt was written by a newer version" in line


@pytest.mark.slow
@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_two_processes_do_not_share_a_run(forked, tmp_path, name):
    command = [sys.executable, PROJECT / name, "--total-timesteps", "10000000", "--run-dir", "run", "--no-compile"]
    process = subprocess.Popen([*command, "--checkpoint-interval", "512"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        time.sleep(0.05)
    result = forked(name, "--resume", "run")
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "--resume run is in use by another process" in line
    process.terminate()
    assert process.wait(30) == 143
    assert forked(EVALUATE, "run", "--episodes", 1).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("script_module", [epoch, step], ids=["epoch", "step"])
def test_a_full_disk_stops_the_run_and_keeps_the_last_checkpoint(script_module, tmp_path):
    """No file can grow beyond a limit that falls in the middle of the run."""
    run = tmp_path / "run"
    settings = {"total_timesteps": 4000, "checkpoint_interval": 512}
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"sys.path.insert(0, {str(PROJECT)!r}); import pathlib; from training import Run, cli;"
        f"import {script_module.__name__} as script;"
        f"config = script.Config(run_dir=pathlib.Path({str(run)!r}), img_dir=pathlib.Path({str(tmp_path)!r}),"
        f"env='CartPole-v1', **{settings!r}); save = Run.save\n"
        "def limited(run, **loop):\n"
        "    save(run, **loop)\n"
        "    if run.timestep > 1000:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "Run.save = limited; cli.parse = lambda *args: config; cli.main(script.Config, script.train)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "cannot be written" in line
    assert f"the last checkpoint is {run / 'checkpoint.pt'}" in line
    saved = load_checkpoint(run)["timestep"]
    assert saved > 1000
    config = parse(script_module.Config, ["--resume", str(run), "--quiet", "--total-timesteps", str(saved + 512)])
    assert config.resume == run


@pytest.mark.slow
@pytest.mark.parametrize("name", [EPOCH, STEP])
def test_a_run_directory_that_goes_away_stops_the_run(tmp_path, name):
    flags = ["--total-timesteps", "10000000", "--checkpoint-interval", "512", "--run-dir", "run", "--no-compile"]
    process = subprocess.Popen(
        [sys.executable, PROJECT / name, *flags],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run" / "checkpoint.pt").exists():
        time.sleep(0.05)
    while (tmp_path / "run").exists():
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    (line,) = err.splitlines()
    assert re.search(r"at timestep \d+: run\S* cannot be written: No such file or directory; there is no", line), line


def test_a_disk_that_is_full_from_the_start_is_one_line(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5, 5));"
        f"sys.path.insert(0, {str(PROJECT)!r});"
        f"sys.argv = ['script', '--resume', {str(run)!r}, '--total-timesteps', '9999'];"
        "import a2c_algorithm_epoch_update as script; script.main(script.Config, script.train)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "cannot be written" in result.stderr
    assert {name: (run / name).read_bytes() for name in before} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_directory_is_refused(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    run.chmod(0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        epoch.train(parse(epoch.Config, ["--resume", str(run)]))
    run.chmod(0o700)


def test_quiet_says_nothing_but_errors(forked, tmp_path):
    result = forked(EPOCH, "--total-timesteps", 1024, "--run-dir", "run", "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["quiet"]
    result = forked(EPOCH, "--resume", "run", "--total-timesteps", 2048, "--no-quiet")
    assert "resumed at timestep 1024" in result.stdout
    assert not forked(EPOCH, "--total-timesteps", 0, "--quiet").stdout


@pytest.mark.parametrize("command", [("--video", "film.mp4"), ("--policy-map", "map.png", "--episodes", 1)])
def test_a_finished_run_is_filmed_and_drawn(forked, finished, tmp_path, command):
    result = forked(EVALUATE, finished, *command)
    assert result.returncode == 0, result.stderr
    content = (tmp_path / command[1]).read_bytes()
    assert (b"ftyp" in content[:20]) if command[1] == "film.mp4" else content.startswith(b"\x89PNG")
    assert json.loads(result.stdout.splitlines()[-1])["episodes"] == 1


def test_evaluate_refuses_what_it_cannot_draw(forked, finished, tmp_path):
    for arguments, part in (
        (("--video", "film.avi"), "--video film.avi must end in .mp4"),
        (("--policy-map", "map.jpg"), "--policy-map map.jpg must end in .png"),
        (("--video", "film.mp4", "--render"), "--video and --render cannot be combined"),
    ):
        result = forked(EVALUATE, finished, *arguments)
        assert (result.returncode, part in result.stderr) == (2, True), result.stderr
    config = epoch.Config(env="CartPole-v1", run_dir=tmp_path / "cart", img_dir=tmp_path, total_timesteps=512)
    epoch.train(config)
    result = forked(EVALUATE, tmp_path / "cart", "--policy-map", "map.png")
    assert result.returncode == 2
    assert "--policy-map" in result.stderr
    assert "CartPole-v1" in result.stderr
