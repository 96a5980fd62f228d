"""Compile any PyTorch module: trace it once, then call it at shapes it has not seen.

python examples/any_module.py
"""

from __future__ import annotations

import torch

import irx


class Block(torch.nn.Module):
    """Pre-norm attention and MLP, written the way people write them."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = torch.nn.LayerNorm(width)
        self.qkv = torch.nn.Linear(width, 3 * width)
        self.out = torch.nn.Linear(width, width)
        self.up, self.down = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float [batch, length, width]; the same shape comes back."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


def main() -> None:
    """Compile the block, compare it with eager at new shapes, print the ledger."""
    torch.manual_seed(0)
    block = Block().eval()
    fast = irx.compile(block, torch.randn(2, 8, 64), target="torch")
    for shape in ((1, 1, 64), (3, 17, 64)):
        x = torch.randn(shape)
        with torch.no_grad():
            error = (fast(x) - block(x)).abs().max().item()
        print(f"{shape}: largest difference from eager {error:.1e}")
    print(fast.ledger())


if __name__ == "__main__":
    main()
