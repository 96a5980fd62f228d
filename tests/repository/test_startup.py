"""What starting up imports. Seconds depend on the machine, so the imports are counted instead."""

import json
import subprocess
import sys

import pytest

FRAMEWORKS = {"torch", "transformers", "tvm", "triton", "torch_mlir"}
SYMBOLIC = {"sympy", "networkx"}
ARRAYS = {"numpy", "ml_dtypes"}
PROGRAM = """
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()) as printed:
    {statement}
print(json.dumps([sorted(name for name in sys.modules if "." not in name), printed.getvalue()]))
"""


def imported_by(statement: str) -> set[str]:
    program = PROGRAM.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    modules, printed = json.loads(done.stdout)
    assert printed or "main" not in statement, "the command printed nothing"
    return set(modules)


@pytest.mark.parametrize(
    "words", [["passes"], ["ops"], ["devices"], ["ops", "--json"], ["passes", "--help"]], ids=" ".join
)
def test_listing_commands_import_no_framework(words: list[str]) -> None:
    statement = f"""
    from irx.cli import main
    try: main({words!r})
    except SystemExit: print("help")"""
    assert not imported_by(statement) & (FRAMEWORKS | SYMBOLIC)


def test_help_imports_next_to_nothing() -> None:
    modules = imported_by("import irx.cli; irx.cli.main(['--help'])")
    assert not modules & (FRAMEWORKS | SYMBOLIC | ARRAYS | {"rich", "argparse"})


def test_importing_irx_imports_no_framework() -> None:
    assert not imported_by("import irx") & (FRAMEWORKS | SYMBOLIC)
