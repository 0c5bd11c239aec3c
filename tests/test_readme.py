"""What the READMEs say is what the committed results say, and both say the same."""

import re
from collections import Counter

import pytest
from conftest import PROJECT

import compare
from benchmarks import checkpoint, memory, mujoco, mujoco_speed, returns, scaling, throughput, time_to_solve
from training.comparison import Results
from training.experiments import EPISODES, WINDOW, read_csv

READMES = {"README.md": "## Results\n", "README.zh-CN.md": "## 结果\n"}
both = pytest.mark.parametrize("name", READMES)


def text(name):
    return (PROJECT / name).read_text()


def results_section(name):
    section = text(name).partition(READMES[name])[2]
    return section[: section.index("\n## ")]


@pytest.fixture
def generated(capsys):
    """Every line of every table, drawn anew from results/*.csv."""
    for path in (PROJECT / "results").glob("compare_*_curves.csv"):
        results = Results(path.parent, path.stem.removeprefix("compare_").removesuffix("_curves"))
        results.check_complete()
        print(*compare.table(results), sep="\n")
    returns.print_tables(read_csv(returns.RESULTS, returns.COLUMNS))
    for benchmark in (mujoco, throughput, mujoco_speed, time_to_solve, scaling, memory, checkpoint):
        benchmark.print_table()
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]


@both
def test_every_table_of_results_is_what_the_results_say(generated, name):
    shown = [line for line in results_section(name).splitlines() if line.startswith("|")]
    assert Counter(shown) == Counter(generated)


def numbers(prose):
    return [number.replace(",", "") for number in re.findall(r"(?<![\w.])-?\d[\d,]*\.?\d*(?<![.,])(?![\w-])", prose)]


SETTINGS = {  # numbers of the prose that are settings of the measurements, not results
    "0", "9", "4",  # the seeds
    "100", "20",  # episodes: of an evaluation, and of a point of a curve
    "95",  # per cent
    "64", "256",  # units of a layer, in the tables of speed and cost
    "10000", "1000000",  # time to solve: timesteps between evaluations, and at most
    "200000",
    "0.9999", "2000000",  # of what others report about MuJoCo
    "16", "30", "10",  # environments of a machine; microseconds and Gbit/s between machines
}  # fmt: skip


@both
def test_every_number_of_the_results_prose_is_in_a_table(generated, name):
    prose = re.sub(r"```.*?```|`[^`]*`|\((?:img/|http)[^)]*\)|[\w-]+-v\d", "", results_section(name), flags=re.DOTALL)
    prose = "\n".join(line for line in prose.splitlines() if not line.startswith("|"))
    known = SETTINGS | set(numbers("\n".join(generated)))
    assert [number for number in numbers(prose) if number not in known] == []
    assert {str(EPISODES), str(WINDOW)} <= SETTINGS


def test_both_languages_have_the_same_commands_links_and_code():
    def content(name):
        blocks = [re.sub(r" *#.*", "", block) for block in re.findall(r"```(.*?)```", text(name), re.DOTALL)]
        links = re.findall(r"\]\(((?:img|http)[^)]*)\)", text(name))
        return [block for block in blocks if "delta_t" not in block], links  # the equations have words in them

    a, b = map(content, READMES)
    assert a == b


@both
def test_every_file_and_picture_that_is_named_is_there(name):
    for path in re.findall(r"\]\(((?:img|README)[^)#]*)\)", text(name)):
        assert (PROJECT / path).exists(), path
    for path in re.findall(r"`((?:benchmarks|results|tests)/[\w./]*\w)`", text(name)):
        assert (PROJECT / path).exists(), path
    tests = "".join(path.read_text() for path in (PROJECT / "tests").rglob("test_*.py"))
    for function in re.findall(r"`(test_\w+)`", text(name)):
        assert f"def {function}(" in tests, function
