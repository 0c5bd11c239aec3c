"""What the benchmarks share: CSV files of measurements, processes of their own, and Markdown tables."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent

# training.experiments is imported where it is used: it imports PyTorch, and the processes that are timed from start to
# end import this module.


class Measurements:
    """The measurements in `results/<name>.csv`. What is there is not measured again."""

    def __init__(self, name: str, *columns: str) -> None:
        self.path, self.columns = PROJECT / "results" / f"{name}.csv", columns

    def rows(self, **where: object) -> list[dict[str, str]]:
        """The rows that have these values."""
        from training.experiments import read_csv

        values = {column: str(value) for column, value in where.items()}
        return [row for row in read_csv(self.path, self.columns) if values.items() <= row.items()]

    def by_round(self, **where: object) -> dict[str, float]:
        """The last column of the rows that have these values, by their round."""
        return {row["round"]: float(row[self.columns[-1]]) for row in self.rows(**where)}

    def add(self, *rows: Mapping[str, object]) -> None:
        """Keep new rows, and print them."""
        from training.experiments import write_csv

        write_csv(self.path, self.columns, [*self.rows(), *rows])
        for row in rows:
            print(*(row[column] for column in self.columns), sep=", ", flush=True)


def python(*arguments: object, **environment: str) -> list[list[str]]:
    """Run Python in a process of its own, on one thread; returns the words of the lines "result ..." that it prints."""
    command = [sys.executable, *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    process = subprocess.run(command, capture_output=True, text=True, env=env, cwd=PROJECT, check=False)
    if process.returncode:
        sys.exit(f"{' '.join(command)}: {process.stderr[-2000:]}")
    return [line.split()[1:] for line in process.stdout.splitlines() if line.startswith("result ")]


def training(script: str, folder: str, *flags: object) -> list[object]:
    """Python's arguments for training with either script, in a folder."""
    return [PROJECT / f"a2c_algorithm_{script}_update.py", *flags, "--run-dir", f"{folder}/run", "--img-dir", folder]


def rate(script: str, *flags: object, launcher: Sequence[object] = ()) -> float:
    """Timesteps a second of a training, from its own log: the last two thirds, long after it has compiled."""
    from training.experiments import read_csv

    with tempfile.TemporaryDirectory() as folder:
        python(*launcher, *training(script, folder, *flags))
        rows = read_csv(Path(folder, "run", "updates.csv"), ["timestep", "wall_time"])
    first, last = rows[len(rows) // 3], rows[-1]
    return (int(last["timestep"]) - int(first["timestep"])) / (float(last["wall_time"]) - float(first["wall_time"]))


def print_table(heads: str, rows: Iterable[str]) -> None:
    """Print a Markdown table, of cells with " | " between them."""
    print(f"| {heads} |\n{'|---' * (heads.count('|') + 1)}|")
    for row in rows:
        print(f"| {row} |")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a benchmark that measures several things."""

    only: str = ""
    """Only what has this in its name."""
    table: bool = False
    """Measure nothing: print the tables of what is there, and draw the figures."""


def measure_and_show(config: Config, benchmarks: Mapping[str, Sequence[Callable[[], None]]]) -> None:
    """Call, of each benchmark, the function that measures and the one that shows what was measured."""
    chosen = [functions for name, functions in benchmarks.items() if config.only in name]
    if not chosen:
        print(f"--only {config.only} is part of no name; choose from {', '.join(benchmarks)}", file=sys.stderr)
        sys.exit(2)
    for measure, show in chosen:
        if not config.table:
            measure()
        show()
