"""Sessions own a cache: append text in chunks, fork a shared prefix, take tokens back.

python examples/sessions.py
"""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import irx


def main() -> None:
    """Serve two continuations from one prefix that was computed once."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    fast = irx.compile(LlamaForCausalLM(config).eval(), target="torch")
    prefix = torch.randint(0, 256, (1, 32))

    session = fast.session()
    session.append(prefix)
    for name, ending in (("first", [[1, 2, 3]]), ("second", [[9, 8]])):
        branch = session.fork()
        logits = branch.append(torch.tensor(ending))
        print(f"{name} branch: {branch.length} tokens, next token {int(logits[0, -1].argmax())}")
    print(f"the prefix itself still has {session.length} tokens and holds {session.memory()} bytes")


if __name__ == "__main__":
    main()
