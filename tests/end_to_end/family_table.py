"""The README's table of model families, made by running them.

    python -m tests.end_to_end.family_table            # print the table
    python -m tests.end_to_end.family_table --write    # put it into README.md

Each family is a small random-weight model of that architecture in float32, compiled from an example of batch 2 and
length 16. `forward` is the largest error against eager PyTorch, relative to the largest output, at batch 3 and length
21; `cached` the same for prefill, a second chunk and single steps against the full forward pass.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import irx
from irx.errors import IRXError
from tests.end_to_end.families import FAMILIES, Family

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- families:begin -->", "<!-- families:end -->"
RECOGNISED = ("attention", "kv_attention", "rms_norm", "layer_norm", "rope", "swiglu", "geglu", "gelu", "moe", "linear")


def row(family: Family) -> list[str]:
    """One line of the table."""
    try:
        model = family.model()
        fast = irx.compile(model, family.inputs(2, 16), target="torch")
        forward, cached = forward_error(fast, family, model), cached_error(fast, family, model)
    except pytest.skip.Exception as skipped:
        return [family.name, family.kind, f"not run: {skipped}", "", "", ""]
    except IRXError as error:
        return [family.name, family.kind, f"fails: {error}", "", "", ""]
    summary = fast.ledger().summary
    counts = " ".join(f"{name} {summary.operations[name]}" for name in RECOGNISED if name in summary.operations)
    calls = ", ".join(f"{name} {count}" for name, count in sorted(summary.calls.items()))
    return [family.name, family.kind, f"{forward:.0e}", "" if cached is None else f"{cached:.0e}", counts, calls or "0"]


def forward_error(fast: Any, family: Family, model: torch.nn.Module) -> float:
    """Largest relative difference from eager at a shape that was not captured."""
    inputs = family.inputs(3, 21)
    expected = family.eager(model, inputs)
    result = fast(**inputs)
    made = {"output": result} if isinstance(result, torch.Tensor) else {name: result[name] for name in expected}
    return max(relative(made[name], expected[name]) for name in expected)


def cached_error(fast: Any, family: Family, model: torch.nn.Module) -> float | None:
    """Largest relative difference of prefill, chunk and steps from the full forward pass; None without a cache."""
    if family.kind != "decoder" or family.fields != ("logits",):
        return None
    ids = family.inputs(3, 21)["input_ids"]
    expected = family.eager(model, {"input_ids": ids})["logits"]
    session = fast.session(3)
    chunks = [session.append(part, logits_to_keep=0) for part in ids.split([9, 4, *[1] * 8], dim=1)]
    return relative(torch.cat(chunks, dim=1), expected)


def relative(made: torch.Tensor, expected: torch.Tensor) -> float:
    """max|made - expected| / max|expected|."""
    assert made.shape == expected.shape, (made.shape, expected.shape)
    return float((made - expected).abs().max() / expected.abs().max())


def table() -> str:
    """The whole table as Markdown."""
    lines = ["| family | kind | forward | cached | recognised | torch.call |", "|---|---|---|---|---|---|"]
    lines += ["| " + " | ".join(row(family)) + " |" for family in FAMILIES.values()]
    return "\n".join(lines)


def main() -> None:
    """Print the table, or write it between the README's marks."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    made = table()
    if not parser.parse_args().write:
        print(made)
        return
    head, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    README.write_text(f"{head}{BEGIN}\n{made}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
