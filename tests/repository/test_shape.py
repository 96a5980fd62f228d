"""The shape of the code: ceilings for sizes, and words that must not stand in it."""

import ast
import re
from pathlib import Path

import pytest

from tests.repository.tree import CODE_FOLDERS, SOURCE_FOLDERS, files, shown, syntax

FILE_LINES = 500
FUNCTION_LINES = 80
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}
# Split, so that this file does not find itself.
UNFINISHED = re.compile("|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "NotImplemented" + "Error")))
MODELS = re.compile(
    r"llama|qwen|gemma|mistral|mixtral|deepseek|whisper|falcon|gpt|(?<![a-z])(bert|t5|phi|vit|olmo|smollm)",
    re.IGNORECASE,
)
VENDORS = re.compile(r"(?<![a-z])(nvidia|intel|amd|huggingface)(?![a-z])", re.IGNORECASE)

CODE = files(*CODE_FOLDERS)


def test_files_are_small() -> None:
    lengths = {shown(path): len(path.read_text().splitlines()) for path in CODE}
    assert {name: length for name, length in lengths.items() if length > FILE_LINES} == {}


def test_functions_are_small() -> None:
    lengths = {
        f"{shown(path)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in CODE
        for node in ast.walk(syntax(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


def test_files_are_named_for_what_they_hold() -> None:
    assert [shown(path) for path in CODE if {*Path(shown(path)).with_suffix("").parts} & NAMELESS] == []


def test_nothing_is_left_for_later() -> None:
    lines = [(path, number, line) for path in CODE for number, line in enumerate(path.read_text().splitlines(), 1)]
    assert [f"{shown(path)}:{number}: {line.strip()}" for path, number, line in lines if UNFINISHED.search(line)] == []


def test_no_error_is_swallowed() -> None:
    handlers = [(path, node) for path in CODE for node in ast.walk(syntax(path)) if isinstance(node, ast.ExceptHandler)]
    silent = [(path, node) for path, node in handlers if all(isinstance(line, ast.Pass) for line in node.body)]
    assert [f"{shown(path)}:{node.lineno}" for path, node in silent] == []


def test_files_say_what_they_are_for() -> None:
    assert [shown(path) for path in files(*SOURCE_FOLDERS) if not ast.get_docstring(syntax(path))] == []


def identifiers(path: Path) -> set[str]:
    """Every name a file gives or uses, and its own."""
    nodes = list(ast.walk(syntax(path)))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return names | {node.arg for node in nodes if isinstance(node, ast.arg)} | {path.stem}


def test_passes_name_no_model_and_no_vendor() -> None:
    names = [(path, name) for path in files("passes") for name in sorted(identifiers(path))]
    assert [f"{shown(path)}: {name}" for path, name in names if MODELS.search(name) or VENDORS.search(name)] == []


@pytest.mark.parametrize(
    ("name", "caught"), [("fuse_llama", True), ("t5_bias", True), ("graphics", False), ("fit", False)]
)
def test_model_names_are_noticed(name: str, caught: bool) -> None:
    assert bool(MODELS.search(name)) == caught
