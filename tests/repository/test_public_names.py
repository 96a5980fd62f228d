import ast

import pytest

import irx
from tests.repository.tree import ROOT, syntax

INIT = ROOT / "irx/__init__.py"


def test_type_checkers_and_python_see_the_same_names() -> None:
    (guarded,) = [node for node in syntax(INIT).body if isinstance(node, ast.If)]
    declared = {(alias.name, node.module) for node in guarded.body for alias in node.names}
    assert declared == set(irx._PUBLIC.items())
    assert sorted(irx.__all__) == sorted(irx._PUBLIC)


@pytest.mark.parametrize("name", irx.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(irx, name).__name__.rpartition(".")[2] == name  # `irx.passes` is a package that can be called
    assert name in dir(irx)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="compile_all"):
        irx.compile_all  # noqa: B018
