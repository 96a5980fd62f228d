"""Encoders under eager PyTorch, Inductor and, where it is installed, OpenVINO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from irx.bench.baselines.absent import Absent
from irx.bench.baselines.language import Step, compiled


def eager_encoder(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Step:
    """The last hidden states of a transformers encoder for ids and mask [B, S]."""
    return _step(model.forward, ids, mask)


def inductor_encoder(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Step:
    """The same through `torch.compile`. Raises Absent without a C++ compiler."""
    return _step(compiled(model.forward), ids, mask)


def openvino_encoder(model: Any, ids: torch.Tensor, mask: torch.Tensor, threads: int) -> Step:
    """The same, converted by OpenVINO and compiled for the CPU in float32. Raises Absent without it."""
    try:
        import openvino
    except ImportError as error:
        raise Absent("openvino is not installed") from error
    inputs = {"input_ids": ids, "attention_mask": mask}
    converted = openvino.convert_model(model, example_input=inputs)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.compile_model(converted, "CPU", settings).create_infer_request()
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}

    def step() -> torch.Tensor:
        return torch.from_numpy(request.infer(arrays)["last_hidden_state"])

    return step


def _step(forward: Callable[..., Any], ids: torch.Tensor, mask: torch.Tensor) -> Step:
    @torch.no_grad()
    def step() -> torch.Tensor:
        states: torch.Tensor = forward(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    return step
