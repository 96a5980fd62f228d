"""Language models as their own code has them under PyTorch, eager and through Inductor.

Both get the fair form of inference: logits for the last position only, and a cache of exactly the size that the run
needs. Eager PyTorch is tried with a static and with a growing cache, and the faster of the two is the baseline.
Inductor gets the static one, the whole forward as one graph, and is compiled before it is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from irx.bench.baselines.absent import need_compiler

Step = Callable[[], torch.Tensor]
TRIALS = 3  # calls of each form of the cache before one is chosen


def eager_decode(model: Any, context: torch.Tensor) -> Step:
    """A decode step of a transformers model after `context` (ids [B, T]); every call does the same step again."""
    return _faster(static_decode(model, context, model.forward), growing_decode(model, context))


def inductor_decode(model: Any, context: torch.Tensor) -> Step:
    """The same through `torch.compile`. Raises Absent without a C++ compiler."""
    return static_decode(model, context, compiled(model.forward))


def eager_prefill(model: Any, prompt: torch.Tensor) -> Step:
    """The logits of the last of the tokens `prompt` [B, T], all of them cached, from an empty cache every time."""
    return _faster(static_prefill(model, prompt, model.forward), growing_prefill(model, prompt))


def inductor_prefill(model: Any, prompt: torch.Tensor) -> Step:
    """The same through `torch.compile`. Raises Absent without a C++ compiler."""
    return static_prefill(model, prompt, compiled(model.forward))


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one Inductor graph of fixed shapes. Raises Absent without a C++ compiler."""
    need_compiler()
    made: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return made


def static_decode(model: Any, context: torch.Tensor, forward: Callable[..., Any]) -> Step:
    """A decode step with a cache of one token more than `context`."""
    cache = _static_cache(model, context.shape[1] + 1)
    token, length = context[:, -1:].clone(), context.shape[1]
    _fill(model, context, cache)

    @torch.no_grad()
    def step() -> torch.Tensor:
        _rewind(cache, length)
        return _logits(forward(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1))

    return step


def growing_decode(model: Any, context: torch.Tensor) -> Step:
    """A decode step with a cache that is extended and then cut again."""
    from transformers import DynamicCache

    token = context[:, -1:].clone()
    cache = DynamicCache(config=model.config)
    _fill(model, context, cache)

    @torch.no_grad()
    def step() -> torch.Tensor:
        output = model(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)
        return _logits(output)

    return step


def static_prefill(model: Any, prompt: torch.Tensor, forward: Callable[..., Any]) -> Step:
    """A prefill into a cache of the prompt's size."""
    cache = _static_cache(model, prompt.shape[1])
    _fill(model, prompt, cache)  # allocates it

    @torch.no_grad()
    def step() -> torch.Tensor:
        _rewind(cache, 0)
        return _logits(forward(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1))

    return step


def growing_prefill(model: Any, prompt: torch.Tensor) -> Step:
    """A prefill into a new cache."""
    from transformers import DynamicCache

    @torch.no_grad()
    def step() -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        return _logits(model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1))

    return step


def _static_cache(model: Any, length: int) -> Any:
    from transformers import StaticCache

    return StaticCache(config=model.config, max_cache_len=length)


def _rewind(cache: Any, length: int) -> None:
    for layer in cache.layers:
        layer.cumulative_length.fill_(length)


@torch.no_grad()
def _fill(model: Any, context: torch.Tensor, cache: Any) -> None:
    model(input_ids=context, past_key_values=cache, use_cache=True, logits_to_keep=1)


def _logits(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits
    return logits


def _faster(*steps: Step) -> Step:
    """The one that takes less time, tried in turns."""
    best = dict.fromkeys(range(len(steps)), float("inf"))
    for _ in range(TRIALS):
        for index, step in enumerate(steps):
            step()
            start = time.perf_counter()
            step()
            best[index] = min(best[index], time.perf_counter() - start)
    return steps[min(best, key=best.__getitem__)]
