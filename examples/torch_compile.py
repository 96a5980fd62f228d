"""Use IRX as a torch.compile backend: one word, no change to the model.

python examples/torch_compile.py
"""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def main() -> None:
    """Run a small GPT-2 through torch.compile(backend="irx") and compare with eager."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=128)).eval()
    compiled = torch.compile(model, backend="irx")
    ids = torch.randint(0, 256, (2, 12))
    with torch.no_grad():
        error = (compiled(ids).logits - model(ids).logits).abs().max().item()
    print(f"largest difference from eager: {error:.1e}")


if __name__ == "__main__":
    main()
