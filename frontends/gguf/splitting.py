"""How byte-level vocabularies cut text into words before merging, by the name the file gives (`tokenizer.ggml.pre`).

The merges were learned on words cut one way: cut in another, they give other ids for the same text and the model still
runs, worse. So an unknown name is an error. The two long patterns were published with their models.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from irx.errors import UnsupportedFile

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_DIGIT_GROUPS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_SINGLE_DIGITS = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST


@dataclass(frozen=True)
class Splitting:
    """One way to cut text, with what files of this kind leave unsaid.

    `pattern` None is the cut of GPT-2, which the `tokenizers` library has built in. `digits` cuts every digit off
    first. `composed` puts characters and their accents together (NFC). With `whole_words` a word that is a token is
    taken whole, whatever the merges say. `begins` says whether a begin token is added where the file does not say.
    """

    pattern: str | None = None
    digits: bool = False
    composed: bool = False
    whole_words: bool = False
    begins: bool = False

    def pre_tokenizer(self) -> Any:
        """The cut as a `tokenizers` pre-tokenizer, bytes spelled as the vocabulary does."""
        from tokenizers import Regex, pre_tokenizers

        steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        if self.pattern is not None:
            steps.append(pre_tokenizers.Split(Regex(self.pattern), behavior="isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.pattern is None))
        return pre_tokenizers.Sequence(steps)


_GPT2 = Splitting()
_DIGITS = Splitting(digits=True)
_LLAMA3 = Splitting(_DIGIT_GROUPS, whole_words=True, begins=True)
_QWEN2 = Splitting(_SINGLE_DIGITS, composed=True)

# A file without a name is cut as GPT-2 does, as every reader of such files does.
SPLITTINGS: dict[str, Splitting] = {
    **dict.fromkeys(("default", "gpt-2", "gpt2"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": replace(_QWEN2, composed=False),
}


def splitting_of(name: str, where: str) -> Splitting:
    """The splitting a file names. Raises UnsupportedFile, which lists the known names."""
    if name not in SPLITTINGS:
        known = f"known: {', '.join(sorted(SPLITTINGS))}; give ids instead of text, or a tokenizer of your own"
        raise UnsupportedFile(f"the tokenizer cuts text in the way {name!r}, which is unknown", where=where, fix=known)
    return SPLITTINGS[name]
