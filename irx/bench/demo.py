"""`irx demo`: a real pretrained language model, compiled for this machine, next to what PyTorch makes of it.

Compiles the model, lets it write, prints the ledger, then times one decode step against the model's own code under
eager PyTorch and, where a C++ compiler is present, through Inductor: interleaved in this process, with the floor that
memory bandwidth sets beside the figures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from irx.bench.baselines.absent import Absent
from irx.bench.baselines.language import Step, eager_decode, inductor_decode
from irx.bench.baselines.models import causal_lm
from irx.bench.baselines.reading import reader
from irx.bench.lab import irx_decode
from irx.bench.timing import Timing, interleave
from irx.errors import TokenizerNeeded

PROMPT = "Water boils at 100 degrees"
CONTEXT = 128  # tokens before the timed step, fewer where the model takes no more


@dataclass(frozen=True)
class Speed:
    """Decode steps timed in one run, and what reading IRX's weights once takes at the bandwidth of that run."""

    context: int
    timings: Mapping[str, Timing]
    absent: Mapping[str, str]
    weight_bytes: int
    bandwidth: float

    @property
    def floor(self) -> float:
        """Seconds that reading all weights once takes."""
        return self.weight_bytes / self.bandwidth

    def facts(self) -> dict[str, Any]:
        """The figures as plain data, in seconds and bytes."""
        timings = {name: asdict(timing) for name, timing in self.timings.items()}
        return {"context": self.context, "steps": timings, "absent": dict(self.absent), "floor": self.floor}

    def lines(self) -> list[str]:
        """The figures as text: each candidate's step, its ratio to IRX, and the floor."""
        ours = self.timings["IRX"].median
        lines = [f"One decode step at a context of {self.context} tokens, interleaved; PyTorch in float32:"]
        for name, timing in self.timings.items():
            ratio = "" if name == "IRX" else f", {timing.median / ours:.2f} times IRX's"
            lines.append(f"  {name:<9} {timing}, {1 / timing.median:.1f} tokens/s{ratio}")
        lines += [f"  {name:<9} absent: {reason}" for name, reason in self.absent.items()]
        megabytes, rate = self.weight_bytes / 1e6, self.bandwidth / 1e9
        lines.append(
            f"  floor     {self.floor * 1e3:.2f} ms: {megabytes:.0f} MB of weights at {rate:.0f} GB/s, as measured"
        )
        return lines


def run(
    model: str | None, *, tokens: int, prompt: str, target: str, inductor: bool, write: Callable[[str], object] = print
) -> dict[str, Any]:
    """The whole demo; `write` receives the output line by line, and all of it comes back as plain data."""
    import irx
    from irx.frontends.gguf.demo import SMOLLM2

    path = Path(model) if model else SMOLLM2.open().path
    write(f"Compiling {path.name} for {target} ...")
    start = time.perf_counter()
    fast = irx.compile(str(path), target=target, dtype="f32")  # as what it is timed against
    seconds = time.perf_counter() - start
    write(f"Compiled in {seconds:.1f} s.\n")
    text = _text(fast, prompt, tokens)
    write(f"{text}\n")
    write(f"{fast.ledger()}\n")
    measured = speed(fast, path, inductor=inductor)
    for line in measured.lines():
        write(line)
    ledger = json.loads(fast.ledger().to_json())
    return {"model": path.name, "seconds": seconds, "text": text, "ledger": ledger, "speed": measured.facts()}


def _text(fast: Any, prompt: str, tokens: int) -> str:
    if fast.tokenizer is None:
        raise TokenizerNeeded("the model has no tokenizer", fix="use a GGUF file or a folder that has one")
    ids = fast.tokenizer.encode(prompt).ids
    output = fast.generate([ids], max_new_tokens=tokens, eos_token_id="model")
    return str(fast.tokenizer.decode(output[0].tolist()))


def speed(fast: Any, path: Path, *, inductor: bool = True) -> Speed:
    """Time a decode step of `fast` against transformers on the same weights."""
    import torch

    module = causal_lm(path)
    context = min(CONTEXT, module.config.max_position_embeddings // 2)
    ids = torch.randint(0, module.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
    candidates = {"IRX": irx_decode(fast, ids), "eager": eager_decode(module, ids)}
    made, reason = attempt(lambda: inductor_decode(module, ids)) if inductor else (None, "not asked for")
    if made is not None:
        candidates["Inductor"] = made
    size = sum(p.numel() * p.element_size() for p in module.parameters())
    candidates["read"] = reader(size, torch.get_num_threads())[0]
    with torch.no_grad():
        timings = interleave(candidates)
    read = timings.pop("read").low
    return Speed(context, timings, {"Inductor": reason} if reason else {}, fast.memory().weights, size / read)


def attempt(make: Callable[[], Step]) -> tuple[Step | None, str]:
    """A candidate that ran once, or None and why it does not run here: a demo goes on without it."""
    try:
        step = make()
        step()
    except Exception as error:
        lines = str(error).strip().splitlines()
        message = lines[0] if lines else "no message"
        return None, message if isinstance(error, Absent) else f"{type(error).__name__}: {message}"
    return step, ""
