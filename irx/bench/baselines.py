"""What a user could run instead: the model's own code under PyTorch, eager and through Inductor.

Both baselines get the fair form of decoding: logits for the last position only, a cache that already holds the
context, and one token a step. Inductor gets a static cache of the size the run needs, as its own guides advise.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], object]


def eager_step(model: Any, context: torch.Tensor) -> Step:
    """A decode step of a transformers model after `context` (ids [B, T]); every call does the same step again."""
    from transformers import DynamicCache

    token = context[:, -1:]
    cache = DynamicCache(config=model.config)
    _prefill(model, context, cache)

    @torch.no_grad()
    def step() -> object:
        output = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)
        return output.logits

    return step


def inductor_step(model: Any, context: torch.Tensor) -> Step:
    """As `eager_step`, through `torch.compile` with a static cache of the next multiple of 128 tokens."""
    from transformers import StaticCache

    token = context[:, -1:]
    length = context.shape[1]
    cache: Any = StaticCache(config=model.config, max_cache_len=(length // 128 + 1) * 128)
    _prefill(model, context, cache)
    compiled: Any = torch.compile(model.forward)

    @torch.no_grad()
    def step() -> object:
        for layer in cache.layers:
            layer.cumulative_length.fill_(length)
        return compiled(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits

    return step


def inductor_missing() -> str | None:
    """Why Inductor cannot run here, or None. On a CPU it needs a C++ compiler."""
    if any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return None
    return "no C++ compiler (g++ or clang++) on the PATH"


@torch.no_grad()
def _prefill(model: Any, context: torch.Tensor, cache: Any) -> None:
    model(input_ids=context, past_key_values=cache, use_cache=True, logits_to_keep=1)
