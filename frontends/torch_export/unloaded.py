"""Models whose parameters are on the meta device: traced with stand-ins on the CPU, captured without arrays.

Tensors on the meta device do not mix with inputs and buffers on the CPU while tracing. Each is therefore replaced, for
that time, by memory on the CPU that nobody writes to, which the operating system gives out only when it is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def stand_ins(model: torch.nn.Module) -> Iterator[dict[int, torch.Tensor]]:
    """Trace `model` inside this block. Gives the meta tensors by the storage of what stands for them.

    Tied parameters share one stand-in, as they share one meta tensor.
    """
    made: dict[int, torch.nn.Parameter] = {}
    replaced: list[tuple[dict[str, torch.nn.Parameter | None], str, torch.nn.Parameter]] = []
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or not parameter.is_meta:
                continue
            replaced.append((module._parameters, name, parameter))
            if id(parameter) not in made:
                made[id(parameter)] = torch.nn.Parameter(torch.empty_like(parameter, device="cpu"), False)
    for owner, name, parameter in replaced:
        owner[name] = made[id(parameter)]
    try:
        yield {made[id(p)].untyped_storage()._cdata: p for _, _, p in replaced}
    finally:
        for owner, name, parameter in replaced:
            owner[name] = parameter
