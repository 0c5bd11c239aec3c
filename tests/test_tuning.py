"""The page about tuning: its script runs as it is, prunes, and goes on with its study."""

import os
import re
import subprocess
import sys

import pytest
from conftest import PROJECT

PAGE = (PROJECT / "docs" / "tuning.md").read_text()


@pytest.mark.slow
def test_the_script_of_the_page_searches_prunes_and_goes_on(tmp_path):
    optuna = pytest.importorskip("optuna", reason="Optuna is not installed")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    tiny = code.replace("30_000, 40, (100, 101)", "1_024, TRIALS_HERE, (100, 101)")
    # Prunes whatever is below the best trial, from the first report on.
    tiny = tiny.replace("MedianPruner(n_warmup_steps=TIMESTEPS // 5)", "PercentilePruner(1.0, n_startup_trials=1)")
    assert tiny.count("TRIALS_HERE") == 1
    assert "PercentilePruner" in tiny

    def tune(trials):
        (tmp_path / "tune.py").write_text(tiny.replace("TRIALS_HERE", str(trials)))
        return subprocess.run(
            [sys.executable, "tune.py"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=True,
        )

    tune(3)
    result = tune(5)
    study = optuna.load_study(study_name="CartPole-v1", storage=f"sqlite:///{tmp_path / 'tune.db'}")
    assert len(study.trials) == 5
    states = [trial.state for trial in study.trials]
    assert optuna.trial.TrialState.PRUNED in states
    assert optuna.trial.TrialState.COMPLETE in states
    assert str(study.best_value) in result.stdout
    first = study.trials[0]
    assert max(first.intermediate_values) > 1_024  # both seeds
    assert (tmp_path / "runs" / "tune" / "trial0_seed101" / "checkpoint.pt").exists()
    pruned = study.trials[states.index(optuna.trial.TrialState.PRUNED)].number
    assert (tmp_path / "runs" / "tune" / f"trial{pruned}_seed100" / "checkpoint.pt").exists()  # a run that goes on


def test_the_commands_of_the_page_have_flags_that_exist(forked):
    for line in re.findall(r"^python (.*)$", PAGE, re.MULTILINE):
        name, _, flags = line.partition(" ")
        assert set(re.findall(r"--[\w-]+", flags.partition('"')[0])) <= set(
            re.findall(r"--[\w-]+", forked(name, "--help").stdout)
        )
