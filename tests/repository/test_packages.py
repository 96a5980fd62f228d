"""What is installed is what stands in the tree: the list of packages, and a wheel whose every module imports."""

import subprocess
import sys
import tomllib
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

from tests.repository.tree import ROOT, SOURCE_FOLDERS, files, module_name, shown

# What a module may lack on a machine without the extras. Any other import that fails is a mistake in the wheel.
OPTIONAL = {"tvm", "tvm_ffi", "triton", "torch_mlir"}
IMPORT_ALL = """
import importlib, sys
folder, optional = sys.argv[1], set(sys.argv[2].split(","))
for name in sys.stdin.read().split():
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in optional:
            raise SystemExit(f"{name}: {error}")
        continue
    if not module.__file__.startswith(folder):
        raise SystemExit(f"{name} came from {module.__file__}, not from the wheel")
"""


def packages_in_tree() -> set[str]:
    return {module_name(path.parent / "__init__.py") for path in files(*SOURCE_FOLDERS)}


def test_every_package_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert listed == sorted(packages_in_tree()), "edit `packages` in pyproject.toml"


def test_every_folder_of_code_is_a_package() -> None:
    folders = {path.parent for path in files(*SOURCE_FOLDERS)}
    assert [shown(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def run(*words: str, cwd: Path, stdin: str = "") -> None:
    done = subprocess.run(words, cwd=cwd, input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def unpacked_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tree so that nothing is left in it, and unpacked."""
    scratch = tmp_path_factory.mktemp("wheel")
    copy = scratch / "copy"
    junk = ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "tests", "examples")
    copytree(ROOT, copy, ignore=junk)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(scratch), cwd=copy)
    (wheel,) = scratch.glob("*.whl")
    run(sys.executable, "-m", "zipfile", "-e", str(wheel), str(scratch / "unpacked"), cwd=scratch)
    return scratch / "unpacked"


def test_the_wheel_holds_every_module_and_each_imports(unpacked_wheel: Path) -> None:
    names = "\n".join(module_name(path) for path in files(*SOURCE_FOLDERS) if path.stem != "__main__")
    program = f"import sys; sys.path.insert(0, {str(unpacked_wheel)!r})\n{IMPORT_ALL}"
    run(sys.executable, "-c", program, str(unpacked_wheel), ",".join(OPTIONAL), cwd=unpacked_wheel, stdin=names)


def test_the_wheel_holds_the_data(unpacked_wheel: Path) -> None:
    data = [path for folder in SOURCE_FOLDERS for kind in ("*.toml", "*.irx") for path in (ROOT / folder).rglob(kind)]
    assert len(data) >= 19
    inside = [path.relative_to(ROOT) for path in data]
    mapped = [path if path.parts[0] == "irx" else Path("irx", path) for path in inside]
    assert [str(path) for path in mapped if not (unpacked_wheel / path).exists()] == []


def test_the_wheel_announces_its_entry_points(unpacked_wheel: Path) -> None:
    (path,) = unpacked_wheel.glob("*.dist-info/entry_points.txt")
    text = path.read_text()
    assert "irx = irx.cli:main" in text
    assert "[torch_dynamo_backends]\nirx = irx.dynamo:irx_backend" in text
