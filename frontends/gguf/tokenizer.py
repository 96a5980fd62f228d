"""The tokenizer of a GGUF file, rebuilt from its metadata as a `tokenizers.Tokenizer`.

Two kinds of vocabulary are read. `gpt2` is BPE over bytes: the file lists the merges and names how text is cut into
words first (see `splitting`). `llama` is SentencePiece's BPE over characters, with byte tokens for what the vocabulary
lacks: the file lists a score for every piece, and the merges follow from the scores. Any other kind is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from irx.errors import MissingExtra, UnsupportedFile
from irx.frontends.gguf.header import Metadata, damaged
from irx.frontends.gguf.reader import GgufFile
from irx.frontends.gguf.splitting import splitting_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# GGML's kinds of tokens, as stored in tokenizer.ggml.token_type.
_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4
_SPACE = "\u2581"  # how SentencePiece spells a blank

Merges: TypeAlias = list[tuple[str, str]]


@dataclass(frozen=True)
class GgufTokenizer:
    """A file's tokenizer and what goes with it. Ids are None where the file states none.

    `tokenizer.encode(text)` adds the begin and end tokens that the file asks for; `add_special_tokens=False` does not.
    `stop_token_ids` end a generated text: end of text, and end of turn. `chat_template` is Jinja source, not evaluated.
    """

    tokenizer: Tokenizer
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    stop_token_ids: tuple[int, ...]
    chat_template: str | None


def build_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Build the tokenizer that `file` describes.

    Raises UnsupportedFile for a kind of tokenizer that is not read, or a file without one, DamagedFile when its parts
    contradict each other, and MissingExtra without the `tokenizers` package.
    """
    _require_tokenizers()
    vocabulary = Vocabulary.of(file)
    kind = vocabulary.get("model")
    if kind not in _BUILDERS:
        what = "the file has no tokenizer" if kind is None else f"a tokenizer of kind {kind!r}"
        fix = f"known kinds: {', '.join(_BUILDERS)}; give ids instead of text, or a tokenizer of your own"
        raise UnsupportedFile(what, where=str(file.path), fix=fix)
    tokenizer, begins = _BUILDERS[kind](vocabulary)
    _add_special_tokens(tokenizer, vocabulary)
    begin = vocabulary.get("add_bos_token", begins)
    _add_frame(tokenizer, vocabulary, begin=begin, end=vocabulary.get("add_eos_token", False))
    ends = (vocabulary.token("eos"), vocabulary.token("eot"))
    return GgufTokenizer(
        tokenizer=tokenizer,
        bos_token_id=vocabulary.token("bos"),
        eos_token_id=vocabulary.token("eos"),
        pad_token_id=vocabulary.token("padding"),
        stop_token_ids=tuple(dict.fromkeys(id for id in ends if id is not None)),
        chat_template=file.metadata.get("tokenizer.chat_template"),
    )


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file, with their kinds, and the rest of its `tokenizer.ggml` metadata."""

    file: GgufFile
    metadata: Metadata
    tokens: list[str]
    kinds: list[int]

    @classmethod
    def of(cls, file: GgufFile) -> Vocabulary:
        """Raises DamagedFile when there are not as many kinds as tokens."""
        prefix = "tokenizer.ggml."
        metadata = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
        tokens = metadata.get("tokens", [])
        vocabulary = cls(file, metadata, tokens, [])
        vocabulary.require_list("tokens", tokens, str)
        kinds = metadata.get("token_type", [_NORMAL] * len(tokens))
        vocabulary.require_one_each("token_type", kinds)
        return replace(vocabulary, kinds=kinds)

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata `tokenizer.ggml.{key}`."""
        return self.metadata.get(key, default)

    def token(self, role: str) -> int | None:
        """The id of the special token `role`: `bos`, `eos`, `eot`, `padding`, `unknown`."""
        value = self.get(f"{role}_token_id")
        return value if isinstance(value, int) and 0 <= value < len(self.tokens) else None

    @property
    def ids(self) -> dict[str, int]:
        """The id of every token."""
        return {token: id for id, token in enumerate(self.tokens)}

    def of_kind(self, kind: int) -> list[str]:
        """The tokens of one kind, in order of their ids."""
        return [token for token, its in zip(self.tokens, self.kinds) if its == kind]

    def require_list(self, key: str, values: Any, kind: type = object) -> None:
        """Raises DamagedFile unless `values`, the metadata `key`, are a list, of texts for `kind` str."""
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            what = f"tokenizer.ggml.{key} is not a list{' of texts' if kind is str else ''}"
            raise damaged(what, self.file.path, "metadata")

    def require_one_each(self, key: str, values: Any) -> None:
        """Raises DamagedFile unless `values`, the metadata `key`, are a list with one entry for every token."""
        self.require_list(key, values)
        if len(values) != len(self.tokens):
            what = f"tokenizer.ggml.{key} has {len(values)} entries for {len(self.tokens)} tokens"
            raise damaged(what, self.file.path, "metadata")

    def stated_merges(self) -> Merges:
        """The pairs of `tokenizer.ggml.merges`. Raises DamagedFile for one that is not a pair of tokens."""
        merges = []
        ids = self.ids
        self.require_list("merges", self.get("merges", []), str)
        for number, merge in enumerate(self.get("merges", [])):
            left, _, right = merge.partition(" ")
            if not {left, right, left + right} <= ids.keys():
                raise damaged(f"merge {number} is {merge!r}, not two tokens that make one", self.file.path, "metadata")
            merges.append((left, right))
        return merges


def _byte_level(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """BPE over bytes spelled as printable characters; also whether text begins with a token unless the file says."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    splitting = splitting_of(vocabulary.get("pre", "default"), str(vocabulary.file.path))
    model = models.BPE(vocabulary.ids, vocabulary.stated_merges(), ignore_merges=splitting.whole_words)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitting.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer, splitting.begins


def _sentence_pieces(vocabulary: Vocabulary) -> tuple[Tokenizer, bool]:
    """BPE over characters with blanks spelled out, a blank put in front unless the file says otherwise."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if vocabulary.get("remove_extra_whitespaces") or vocabulary.get("precompiled_charsmap"):
        what = "a tokenizer that normalizes text before it is cut"
        raise UnsupportedFile(what, where=str(vocabulary.file.path), fix="give ids instead of text")
    prefixed = bool(vocabulary.get("add_space_prefix", True))
    unknown = vocabulary.tokens[vocabulary.token("unknown") or 0]
    merges = vocabulary.stated_merges() or _merges_by_score(vocabulary)
    model = models.BPE(vocabulary.ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    front = [normalizers.Prepend(_SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*front, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    blanks = decoders.Replace(_SPACE, " ")
    tokenizer.decoder = decoders.Sequence([blanks, decoders.ByteFallback(), decoders.Fuse(), *strip])
    return tokenizer, True


_BUILDERS: dict[str, Callable[[Vocabulary], tuple[Any, bool]]] = {"gpt2": _byte_level, "llama": _sentence_pieces}


def _merges_by_score(vocabulary: Vocabulary) -> Merges:
    """Every way to make a piece of two others, best score of the piece first: the order SentencePiece merges in."""
    scores = vocabulary.get("scores", [])
    vocabulary.require_one_each("scores", scores)
    score_of = {
        token: score for token, score, kind in zip(vocabulary.tokens, scores, vocabulary.kinds) if kind == _NORMAL
    }
    if len(set(score_of.values())) <= 1:
        what = "the tokenizer's pieces have neither merges nor scores that differ"
        raise UnsupportedFile(what, where=str(vocabulary.file.path), fix="give ids instead of text")
    ranked = [
        (-score, cut, piece)
        for piece, score in score_of.items()
        for cut in range(1, len(piece))
        if piece[:cut] in score_of and piece[cut:] in score_of
    ]
    ranked.sort(key=lambda entry: entry[0])
    return [(piece[:cut], piece[cut:]) for _, cut, piece in ranked]


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Tokens that are found whole in the text before anything else: control tokens, and those added by users."""
    from tokenizers import AddedToken

    control = [AddedToken(token, special=True, normalized=False) for token in vocabulary.of_kind(_CONTROL)]
    added = [AddedToken(token, special=False, normalized=False) for token in vocabulary.of_kind(_USER_DEFINED)]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(added)


def _add_frame(tokenizer: Tokenizer, vocabulary: Vocabulary, *, begin: bool, end: bool) -> None:
    """Put the begin token before a text and the end token after it, where the file asks for them and has them."""
    from tokenizers import processors

    first = vocabulary.token("bos") if begin else None
    last = vocabulary.token("eos") if end else None
    if first is None and last is None:
        return
    frame = [None if id is None else vocabulary.tokens[id] for id in (first, last)]
    single = [part for part in (frame[0], "$A", frame[1]) if part]
    pair = [*single, *(f"{part}:1" for part in (frame[0], "$B", frame[1]) if part)]
    special = [(vocabulary.tokens[id], id) for id in {first, last} if id is not None]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _require_tokenizers() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise MissingExtra("tokenizers", "hf", needed_for="the tokenizer of a GGUF file") from error
