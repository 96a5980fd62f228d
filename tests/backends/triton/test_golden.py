"""The sources of some kernels as they were last looked at: a change that was not meant shows here.

python -m tests.backends.triton.test_golden        # accept what is made now; look at the difference first
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from irx.backends.regions.lowered import Lowered
from irx.backends.triton.kernel import Kernel
from irx.backends.triton.rules import attention, linear, regions
from tests.backends.region_cases import add_norm, built
from tests.backends.triton.linear_bodies import gated, plain
from tests.backends.triton.lowered_run import choices
from tests.backends.tvm.attention_bodies import decoder
from tests.backends.tvm.test_choosing import head

FOLDER = Path(__file__).parent / "golden"

MAKES: dict[str, Callable[[], Lowered | None]] = {
    "products-few-rows-4-bits": lambda: linear.rule(gated("q4_0", 96, 256, "bf16"), choices()),
    "products-many-rows": lambda: linear.rule(plain("bf16", 96, 256, "bf16"), choices()),
    "choosing": lambda: linear.rule(head("bf16", 2000, 64, 64, "bf16")[1], choices()),
    "attention-step": lambda: attention.rule(decoder(), choices()),
    "attention-step-pages": lambda: attention.rule(decoder(layout="dense", storage="f32, page=64"), choices()),
    "attention-step-prefix": lambda: attention.rule(decoder(layout="dense", storage="f32, prefix=shared"), choices()),
    "attention-step-tail": lambda: attention.rule(
        decoder(layout="dense", storage="f32, code=kivi2-16-64", length="1"), choices()
    ),
    "region": lambda: built(add_norm, 576, regions.rule, choices())[1],
}


def source(name: str) -> str:
    """The last kernel of few rows, or of any number of them; of a step behind a prefix the one that reads that."""
    lowered = MAKES[name]()
    assert lowered is not None
    kernel = lowered.cases[-1 if "many" in name else 0].calls[0 if "prefix" in name else -1].kernel
    assert isinstance(kernel, Kernel)
    return kernel.source


@pytest.mark.parametrize("name", MAKES)
def test_a_kernel_is_what_was_accepted(name: str) -> None:
    assert source(name) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in MAKES:
        (FOLDER / f"{each}.txt").write_text(source(each), encoding="utf-8")
