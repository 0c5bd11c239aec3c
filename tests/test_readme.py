"""The tables of the documentation are what the committed results say, and both READMEs say the same."""

import re

import pytest
from conftest import PROJECT

from benchmarks import report

READMES = ("README.md", "README.zh-CN.md")
both = pytest.mark.parametrize("name", READMES)


def text(name):
    return (PROJECT / name).read_text()


def test_every_table_is_what_the_results_say():
    named = []
    for page in report.PAGES:
        shown = page.read_text()
        assert report.with_tables(shown) == shown
        named += re.findall(r"<!-- (?!end)(\w+) -->", shown)
    assert sorted(named) == sorted(report.TABLES)


def test_both_languages_have_the_same_commands_links_and_code():
    def content(name):
        blocks = [re.sub(r" *#.*", "", block) for block in re.findall(r"```(.*?)```", text(name), re.DOTALL)]
        links = re.findall(r"\]\(((?:img|http)[^)]*)\)", text(name))
        return [block for block in blocks if "delta_t" not in block], links  # the equations have words in them

    a, b = map(content, READMES)
    assert a == b


@pytest.mark.parametrize("name", [*READMES, *(f"docs/{path.name}" for path in (PROJECT / "docs").glob("*.md"))])
def test_every_file_and_picture_that_is_named_is_there(name):
    for path in re.findall(r"\]\((?!http)([^)#]+)(?:#[\w-]+)?\)", text(name)):
        assert ((PROJECT / name).parent / path).exists(), path
    for path in re.findall(r"`((?:benchmarks|results|tests)/[\w./]*\w)`", text(name)):
        assert (PROJECT / path).exists(), path
    tests = "".join(path.read_text() for path in (PROJECT / "tests").rglob("test_*.py"))
    for function in re.findall(r"`(test_\w+)`", text(name)):
        assert f"def {function}(" in tests, function
