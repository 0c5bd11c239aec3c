"""What an update of the epoch script costs as batch, number of environments and hidden layers grow.

    python -m benchmarks.cost                        # five minutes; what results/cost.csv has is not measured again
    python -m benchmarks.cost --plot                 # no measuring: draw img/cost.png from what is there

Every measurement is a run of the script on Pendulum-v0 with one setting changed, on one thread and not compiled, timed
by its own log after the first third; settings take turns, so that a slow minute of the machine falls on all of them.
"""

import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import tyro

PROJECT = Path(__file__).parent.parent

RESULTS = PROJECT / "results" / "cost.csv"
COLUMNS = ["flag", "value", "round", "milliseconds_per_timestep"]
VALUES = {
    "sample-size": [128, 512, 2048, 8192],
    "num-envs": [4, 16, 64, 256],
    "hidden-sizes": [16, 64, 256, 1024],
}
LABELS = {
    "sample-size": "timesteps in a batch (16 environments)",
    "num-envs": "environments (batches of 512 timesteps)",
    "hidden-sizes": "units in each of two hidden layers",
}
UPDATES = {"sample-size": 40, "num-envs": 100, "hidden-sizes": 40}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure what an update costs as its settings grow, and draw img/cost.png."""

    rounds: int = 3
    """Measurements of each setting."""
    plot: bool = False
    """Measure nothing: draw what is there."""


def rows() -> list[dict[str, str]]:
    """The measurements that are done."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def measure(flag: str, value: int) -> float:
    """Milliseconds a timestep."""
    size = value if flag == "sample-size" else 512
    flags = [f"--{flag}", *[str(value)] * (2 if flag == "hidden-sizes" else 1), "--no-compile"]
    flags += ["--total-timesteps", str(UPDATES[flag] * size)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(PROJECT / "a2c_algorithm_epoch_update.py"), *flags]
        command += ["--run-dir", f"{folder}/run", "--img-dir", folder]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        with (Path(folder) / "run" / "updates.csv").open(newline="") as file:
            updates = list(csv.DictReader(file))
    first, last = updates[len(updates) // 3], updates[-1]
    seconds = float(last["wall_time"]) - float(first["wall_time"])
    return 1000 * seconds / (int(last["timestep"]) - int(first["timestep"]))


def plot() -> None:
    """Medians, and a line of what linear growth from the first one would be, as img/cost.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    for axes, (flag, values) in zip(figure.subplots(1, 3), VALUES.items(), strict=True):
        costs = []
        for value in values:
            measured = [
                float(row["milliseconds_per_timestep"])
                for row in rows()
                if (row["flag"], row["value"]) == (flag, str(value))
            ]
            costs.append(median(measured) * (value if flag == "sample-size" else 512))
            axes.scatter(
                [value] * len(measured), [m * costs[-1] / median(measured) for m in measured], s=8, color="0.6"
            )
        axes.plot(values, costs, marker="o", color="#0072B2", label="measured, median")
        axes.plot(values, [costs[0] * v / values[0] for v in values], ls="--", color="#D55E00", label="linear")
        axes.set(xscale="log", yscale="log", xlabel=LABELS[flag], xticks=values, xticklabels=map(str, values))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        print(f"{flag}: " + ", ".join(f"{v}: {c:.1f} ms" for v, c in zip(values, costs, strict=True)))
        if flag == "sample-size":
            axes.set_ylabel("milliseconds for a batch")
            axes.legend()
    figure.suptitle("Epoch update on Pendulum-v0: collecting a batch and learning from it, one thread")
    (PROJECT / "img").mkdir(exist_ok=True)
    figure.savefig(PROJECT / "img" / "cost.png", dpi=100)


def main(config: Config) -> None:
    done = {(row["flag"], row["value"], row["round"]) for row in rows()}
    for r in range(0 if config.plot else config.rounds):
        for flag, values in VALUES.items():
            for value in values:
                if (flag, str(value), str(r)) in done:
                    continue
                cost = measure(flag, value)
                RESULTS.parent.mkdir(exist_ok=True)
                new = not RESULTS.exists()
                with RESULTS.open("a", newline="") as file:
                    writer = csv.writer(file)
                    if new:
                        writer.writerow(COLUMNS)
                    writer.writerow([flag, value, r, f"{cost:.6f}"])
                print(f"--{flag} {value}: {cost:.4f} ms a timestep", flush=True)
    plot()


if __name__ == "__main__":
    main(tyro.cli(Config))
