"""Attention masks of padded batches as positions: where each token goes in its row's cache.

A row's tokens are stored without gaps, whatever side the padding is on, so a mask is only needed once, to number the
tokens: position `n + cumsum(mask) - 1` for a row that already holds `n` tokens, and -1 for padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from irx.errors import EmptyPrompt, MaskError


@dataclass(frozen=True)
class Placement:
    """Where the tokens of one step go.

    `positions` i64 [B, S] is each token's place in its row, -1 for padding. `counts` is the number of real tokens per
    row, `last` the column of each row's last real token. `uniform` is the common start of all rows when none is padded
    and all rows are equally long, else None.
    """

    positions: torch.Tensor
    counts: tuple[int, ...]
    last: tuple[int, ...]
    uniform: int | None


def place(ids: torch.Tensor, mask: torch.Tensor | None, lengths: tuple[int, ...]) -> Placement:
    """Number the tokens `ids` [B, S] that follow rows of `lengths` tokens.

    Raises EmptyPrompt for a step or a row without tokens, MaskError for a mask that is not 0/1 [B, S] with the ones of
    each row side by side at one end.
    """
    batch, count = ids.shape
    if batch == 0 or count == 0:
        raise EmptyPrompt(f"the prompt has shape {list(ids.shape)}", fix="give every row at least one token")
    mask = None if mask is None else mask.cpu()  # positions are counted on the host, wherever the model runs
    if mask is None or _check(mask, ids):
        return _unpadded(batch, count, lengths)
    marks = mask.to(torch.int64)
    starts = torch.tensor(lengths, dtype=torch.int64)[:, None]
    positions = torch.where(marks > 0, starts + marks.cumsum(-1) - 1, -1)
    counts = tuple(marks.sum(-1).tolist())
    columns = torch.arange(count).expand(batch, count)
    last = tuple(torch.where(marks > 0, columns, -1).amax(-1).tolist())
    return Placement(positions, counts, last, None)


def _unpadded(batch: int, count: int, lengths: tuple[int, ...]) -> Placement:
    uniform = lengths[0] if lengths.count(lengths[0]) == batch else None
    counts, last = (count,) * batch, (count - 1,) * batch
    if uniform is not None and count == 1:  # every step of a generation: one call of torch
        return Placement(torch.full((batch, 1), uniform), counts, last, uniform)
    starts = torch.tensor(lengths, dtype=torch.int64)[:, None]
    return Placement(starts + torch.arange(count), counts, last, uniform)


def _check(mask: torch.Tensor, ids: torch.Tensor) -> bool:
    """True when nothing is padded. Raises for what is no padding mask of `ids`."""
    if mask.shape != ids.shape:
        fix = "give one 0 or 1 for each token of this call"
        raise MaskError(f"the mask has shape {list(mask.shape)}, the ids {list(ids.shape)}", fix=fix)
    marks = mask != 0
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise MaskError("the mask holds values other than 0 and 1", fix="use 1 for tokens and 0 for padding")
    if not bool(marks.any(-1).all()):
        row = int((~marks.any(-1)).nonzero()[0])
        raise EmptyPrompt(f"row {row} of the mask has no token", fix="give every row at least one token")
    if bool(marks.all()):
        return True
    _check_sides(marks)
    return False


def _check_sides(marks: torch.Tensor) -> None:
    edges = (marks[:, 1:] != marks[:, :-1]).sum(-1)
    wrong = (edges > 1).nonzero()
    if len(wrong):
        raise MaskError(
            f"row {int(wrong[0])} of the mask has a hole, or padding on both sides",
            fix="pad each row on one side only, left or right",
        )
