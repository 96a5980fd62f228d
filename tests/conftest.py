"""What every test gets: a cache of its own, one thread per worker, and a reason where a GPU is missing."""

from __future__ import annotations

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import pytest

# Before anything imports torch or numpy: two workers with a pool of threads each would fight over two cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Many small models are captured, of which torch remembers more than it reads again, and few objects are garbage.
os.environ.setdefault("TORCH_FAKE_TENSOR_DISPATCH_CACHE", "0")
gc.set_threshold(20_000, 20, 50)


@pytest.hookimpl(optionalhook=True)  # a machine that runs some tests need not have xdist
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for the whole suite; a part of it, named on the command line, runs in this process."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not whole:
        config.option.dist = "no"
    return 2 if whole else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where torch sees none."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and torch sees none"))


def _has_gpu() -> bool:
    if find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The on-disk cache of this run, shared by its workers; the user's own is never touched."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "irx-cache"
    os.environ["IRX_CACHE_DIR"] = str(folder)
    return folder
