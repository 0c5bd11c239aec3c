"""Memory of a long run of each script: resident megabytes over the timesteps, in results/memory.csv.

    python benchmarks/memory.py                      # some four minutes

Linux only: it reads /proc.
"""

import csv
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

PROJECT = Path(__file__).parent.parent
RESULTS = PROJECT / "results" / "memory.csv"


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure the memory of a long run of each script."""

    epoch_timesteps: int = 10_000_000
    """Timesteps of the epoch update."""
    step_timesteps: int = 1_000_000
    """Timesteps of the step update."""


def measure(script: str, timesteps: int) -> list[tuple[int, float]]:
    """Timesteps and resident megabytes, every five seconds; what the system counts as its peak comes last."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PROJECT / f"a2c_algorithm_{script}_update.py"), "--quiet"]
        command += ["--total-timesteps", str(timesteps), "--run-dir", f"{folder}/run", "--img-dir", folder]
        samples: list[tuple[int, float]] = []
        process = subprocess.Popen(command)
        peak = 0.0
        while process.poll() is None:
            time.sleep(5)
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
            if "VmRSS" not in status:  # it has just ended
                break
            log = Path(folder) / "run" / "updates.csv"
            rows = log.read_text().splitlines() if log.exists() else []
            done = int(rows[-1].split(",")[0]) if len(rows) > 1 else 0
            samples.append((done, int(status["VmRSS"].split()[0]) / 1024))
            peak = int(status["VmHWM"].split()[0]) / 1024
        if process.wait():
            sys.exit(f"the {script} update failed")
    return [*samples, (timesteps, peak)]


def main(config: Config) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["script", "timestep", "megabytes"])
        for script, timesteps in (("epoch", config.epoch_timesteps), ("step", config.step_timesteps)):
            samples = measure(script, timesteps)
            writer.writerows([script, done, round(megabytes, 1)] for done, megabytes in samples)
            settled = [megabytes for done, megabytes in samples[:-1] if done > timesteps / 5]
            print(
                f"{script} update: peak {samples[-1][1]:.0f} MB; {settled[0]:.0f} MB after a fifth of {timesteps:,}"
                f" timesteps, {settled[-1]:.0f} MB at the end"
            )


if __name__ == "__main__":
    main(tyro.cli(Config))
