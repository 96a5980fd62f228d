"""What rows about lossy passes share: a text, and what a session predicts behind a long prompt."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from irx.errors import TokenizerNeeded

if TYPE_CHECKING:
    import torch

    from irx.analysis.quality import Predictions

CONTINUED = 64  # tokens that are predicted one by one behind a prompt


@lru_cache(1)
def text() -> str:
    """Half a megabyte of English and code that every Python brings."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def ids_of(fast: Any, count: int, skip: int = 0) -> torch.Tensor:
    """Tokens i64 [1, count] of the text by the tokenizer of an executable. Raises TokenizerNeeded."""
    import torch

    if fast.tokenizer is None:
        raise TokenizerNeeded("the model has no tokenizer", fix="use a GGUF file or a folder that has one")
    found = fast.tokenizer.encode(text(), add_special_tokens=False).ids
    found = found * ((skip + count) // max(len(found), 1) + 1)
    return torch.tensor([found[skip : skip + count]])


def continued(fast: Any, ids: torch.Tensor, prompt: int) -> Predictions:
    """What is predicted at the tokens behind the first `prompt` of ids [1, T], appended one by one."""
    import torch

    from irx.analysis.quality import Predictions

    session = fast.session(1)
    pieces = [ids[:, :prompt], *torch.split(ids[:, prompt:-1], 1, dim=1)]
    logits = torch.cat([session.append(piece)[:, -1] for piece in pieces])
    return Predictions.of(logits, ids[0, prompt:])


def distance(before: Predictions, after: Predictions) -> dict[str, float]:
    """KL, top-1 agreement and ratio of perplexities between predictions at the same tokens."""
    from irx.analysis.quality import NextTokens

    sums = NextTokens()
    before.compare(after, sums)
    return sums.figures()


def recalled(fast: Any, length: int, needles: int) -> float:
    """The share of needles, planted at all depths of a prompt of `length` tokens, that are answered."""
    from irx.analysis.needles import recall

    def answer(prompts: Any, count: int) -> Any:
        import torch

        found = fast.generate(torch.as_tensor(prompts), max_new_tokens=count)
        return found[:, prompts.shape[1] :].cpu()

    by_depth = recall(answer, fast.tokenizer, text(), length=length, needles=needles)
    return sum(by_depth.values()) / len(by_depth)
