"""Write the tables of the documentation from `results/*.csv`, and draw its figure of returns.

    python -m benchmarks.report

The text is written by hand; what stands between `<!-- name -->` and `<!-- end -->` is replaced by the tables of that
name.
"""

import contextlib
import io
import re
from collections.abc import Callable
from functools import partial

import compare
from benchmarks import resources, returns, scaling, speed
from benchmarks.measuring import PROJECT
from training.comparison import Results

PAGES = [PROJECT / name for name in ("docs/results.md", "README.md", "README.zh-CN.md")]


def print_comparisons(velocity_free: bool) -> None:
    """The tables of `compare.py` and links to their figures, of the environments with or without velocities."""
    for path in sorted((PROJECT / "results").glob("compare_*_curves.csv")):
        results = Results(path.parent, path.stem.removeprefix("compare_").removesuffix("_curves"))
        if ("NoVel" in results.name) != velocity_free:
            continue
        results.check_complete()
        (timesteps,) = {int(row["timesteps"]) for row in results.runs}
        print(f"{results.name}, {timesteps:,} timesteps:\n")
        print(*compare.table(results), sep="\n")
        print(
            f"\n![Training return against timesteps and seconds, {results.name}](../img/compare_{results.name}.png)\n"
        )


TABLES: dict[str, Callable[[], None]] = {
    "compare": partial(print_comparisons, velocity_free=False),
    "velocity_free": partial(print_comparisons, velocity_free=True),
    "summary": partial(
        returns.print_summary, "environment, timesteps | step update | epoch update | others: A2C | others: PPO"
    ),
    "summary_zh": partial(
        returns.print_summary, "环境与时间步数 | 每步更新 | 每批更新 | 他人公布的 A2C | 他人公布的 PPO"
    ),
    "returns": returns.print_tables,
    "throughput": speed.print_throughput,
    "time_to_solve": speed.print_time_to_solve,
    "mujoco_speed": speed.print_mujoco_speed,
    "backends": scaling.print_backends,
    "scaling": scaling.print_tables,
    "memory": resources.print_memory,
    "checkpoint": resources.print_checkpoint,
}


def with_tables(text: str) -> str:
    """The text with the tables as the results are now."""

    def tables(match: re.Match[str]) -> str:
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            TABLES[match[1]]()
        return f"<!-- {match[1]} -->\n\n{output.getvalue().strip()}\n\n<!-- end -->"

    return re.sub(r"<!-- (?!end)(\w+) -->\n.*?<!-- end -->", tables, text, flags=re.DOTALL)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))
    returns.draw()
