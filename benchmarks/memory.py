"""Memory of a long run of each script: resident megabytes over the timesteps, in results/memory.csv.

    python -m benchmarks.memory                      # some four minutes
    python -m benchmarks.memory --table              # no measuring: print the table of what is there

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
    table: bool = False
    """Measure nothing: print the table of what is there."""


def measure(script: str, timesteps: int, *flags: str, interval: float = 5.0) -> list[tuple[int, float]]:
    """Timesteps and resident megabytes, every `interval` seconds; what the system counts as its peak comes last."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PROJECT / f"a2c_algorithm_{script}_update.py"), "--quiet"]
        command += ["--total-timesteps", str(timesteps), "--run-dir", f"{folder}/run", "--img-dir", folder, *flags]
        samples: list[tuple[int, float]] = []
        process = subprocess.Popen(command)
        peak = 0.0
        while process.poll() is None:
            time.sleep(interval)
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


def print_table() -> None:
    print("| script | timesteps | MB at a fifth of them | MB at the end | MB at most |")
    print("|---|---|---|---|---|")
    with RESULTS.open(newline="") as file:
        rows = [(row["script"], int(row["timestep"]), float(row["megabytes"])) for row in csv.DictReader(file)]
    for script in ("epoch", "step"):
        *samples, (timesteps, peak) = [(done, megabytes) for name, done, megabytes in rows if name == script]
        settled = [megabytes for done, megabytes in samples if done > timesteps / 5]
        print(f"| {script} update | {timesteps:,} | {settled[0]:.0f} | {settled[-1]:.0f} | {peak:.0f} |")


def main(config: Config) -> None:
    if not config.table:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["script", "timestep", "megabytes"])
            for script, timesteps in (("epoch", config.epoch_timesteps), ("step", config.step_timesteps)):
                for done, megabytes in measure(script, timesteps):
                    writer.writerow([script, done, round(megabytes, 1)])
    print_table()


if __name__ == "__main__":
    main(tyro.cli(Config))
