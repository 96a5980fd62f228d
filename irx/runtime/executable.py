"""A compiled model, ready to call, to generate with, and to save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

import torch
from torch import Tensor

from irx.errors import InputMismatch, MissingExtra, UnsupportedArgument
from irx.ledger import Ledger
from irx.runtime import artifact
from irx.runtime.arguments import Arguments, kept_rows
from irx.runtime.compiled import Compiled
from irx.runtime.decoder import Decoder
from irx.runtime.generate import Ending, Sampling, Stream, continue_session, new_tokens
from irx.runtime.kernel import GraphKernel
from irx.runtime.memory import Memory
from irx.runtime.output import rebuild
from irx.runtime.prefix import Prefix
from irx.runtime.profile import Profile, merged
from irx.runtime.session import Session

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids: TypeAlias = Tensor | Sequence[Sequence[int]]


class Executable:
    """Called like the model's forward, with the same result; a snapshot of the weights at compile time.

    Calls on one executable run one after the other, whatever thread they come from. With `classes` results are of the
    model's own output class where that is loaded; else they are an `Output` with the same fields and indices.
    """

    def __init__(self, compiled: Compiled, *, classes: bool = False) -> None:
        self._compiled = compiled
        self._classes = classes
        self._lock = RLock()
        self._sessions: WeakSet[Session] = WeakSet()
        self._prefixes: WeakSet[Prefix] = WeakSet()
        self._tokenizer: Tokenizer | None = None
        self._forward = compiled.kernels.get("forward") or next(iter(compiled.kernels.values()))
        self._arguments = Arguments(self._forward.inputs, compiled.meta, compiled.sizes, str(compiled.device))
        self._decoder = _decoder(compiled, self._lock)

    # --- running ----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward. Raises UnsupportedArgument for a keyword that was not captured (`use_cache`,
        `return_dict` and `logits_to_keep` are understood), InputMismatch, BatchTooLarge and PromptTooLong."""
        inputs = self._arguments.bind(args, kwargs)
        with self._lock, torch.no_grad():
            tensors = dict(zip(self._forward.output_names, self._forward(*inputs), strict=True))
        if kwargs.get("logits_to_keep") is not None and "logits" in tensors:
            tensors["logits"] = kept_rows(tensors["logits"], kwargs["logits_to_keep"])
        result = rebuild(self._tree(), tensors, classes=self._classes)
        return result.to_tuple() if kwargs.get("return_dict") is False and hasattr(result, "to_tuple") else result

    def session(self, batch: int = 1, *, prefix: Prefix | None = None, **encoder_inputs: Tensor) -> Session:
        """A cache of `batch` rows, empty or each beginning with a `prefix`.

        An encoder-decoder model takes its encoder's inputs here.

        Raises UnsupportedArgument for a program without a cache, BatchTooLarge, InputMismatch for a foreign prefix.
        """
        decoder = self._language_model()
        if prefix is not None and prefix not in self._prefixes:
            raise InputMismatch("the prefix was made by another executable", fix="make it with this one's prefix(ids)")
        session = Session(decoder, batch, self._encode(encoder_inputs), prefix)
        self._sessions.add(session)
        return session

    def prefix(self, ids: Ids) -> Prefix:
        """The tokens i64 [1, T], T at least 1, computed once for sessions to begin with: `session(8, prefix=prefix)`.

        Raises UnsupportedArgument for a program whose kernels do not share prefixes, PromptTooLong, InputMismatch.
        """
        decoder = self._language_model()
        if not decoder.shares_prefixes:
            raise UnsupportedArgument(
                "the caches of this program share no prefix",
                fix="compile with kv-share-prefix in the pipeline: 'default | kv-share-prefix'; its row in the ledger "
                "says what it could not change",
            )
        session = Session(decoder, 1)
        session.append(self._prompt(self._tensor(ids)))
        found = session.freeze()
        self._prefixes.add(found)
        return found

    def generate(
        self,
        input_ids: Ids | None = None,
        *,
        max_new_tokens: int,
        attention_mask: Tensor | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        eos_token_id: int | Sequence[int] | str | None = None,
        pad_token_id: int | None = None,
        session: Session | None = None,
        stream: Stream | None = None,
        decoder_input_ids: Ids | None = None,
        **encoder_inputs: Tensor,
    ) -> Tensor:
        """The prompt i64 [B, T] and up to `max_new_tokens` new tokens, rows that ended filled with the pad token.

        Ids may be given as lists, one for each row and all of one length.
        Temperature 0 takes the most likely token; else `top_k`, `top_p` and `seed` say how tokens are drawn.
        `eos_token_id` None never stops, "model" uses the model's own. `attention_mask` marks padding, `session` is
        continued and afterwards holds what was generated, `stream` is called with the tokens [B] of every step. With an
        encoder, `input_ids` or other inputs are the encoder's, and the result starts with `decoder_input_ids`.

        Raises EmptyPrompt, MaskError, PromptTooLong, BatchTooLarge, BadOption, UnsupportedArgument.
        """
        decoder = self._language_model()
        input_ids, decoder_input_ids = self._tensor(input_ids), self._tensor(decoder_input_ids)
        prompt, mask = input_ids, attention_mask
        if decoder.encode is not None:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, **encoder_inputs}
            encoder_inputs = {name: value for name, value in given.items() if value is not None}
            prompt, mask = self._decoder_prompt(decoder_input_ids, encoder_inputs), None
        elif encoder_inputs or decoder_input_ids is not None:
            name = next(iter(encoder_inputs), "decoder_input_ids")
            raise UnsupportedArgument(f"generate got {name!r}, but this model has no encoder")
        prompt = self._prompt(prompt)
        active = session or self.session(len(prompt), prefix=None, **encoder_inputs)
        ending = Ending(max_new_tokens, *self._ends(eos_token_id, pad_token_id))
        tokens = new_tokens(
            active,
            prompt,
            mask,
            ending=ending,
            sampling=Sampling(temperature, top_k, top_p, seed),
            limit=decoder.max_length,
            stream=stream,
        )
        if session is not None:
            continue_session(session, tokens, ending)
        return torch.cat([prompt, tokens], dim=1)

    # --- what it is -------------------------------------------------------------------------------------------------

    def ledger(self) -> Ledger:
        """What every pass did, what it cost and what it gained."""
        return self._compiled.ledger

    def memory(self) -> Memory:
        """Bytes of weights, of the caches of living sessions, and of buffers, as allocated now."""
        buffers = sum(kernel.bytes for kernel in self._compiled.kernels.values())
        caches = sum(session.memory() for session in self._sessions)
        caches += sum(prefix.memory() for prefix in self._prefixes)
        return Memory(self._compiled.store.bytes, caches, buffers)

    def profile(self, *args: Any, repeat: int = 5, **kwargs: Any) -> Profile:
        """Where the time of a call of forward goes, each step with its median over `repeat` calls after one more."""
        inputs = self._arguments.bind(args, kwargs)
        with self._lock, torch.no_grad():
            self._forward(*inputs)
            return merged([self._forward.profile(*inputs) for _ in range(max(1, repeat))])

    @property
    def program(self) -> str:
        """The optimized program, in text that parses back."""
        return self._compiled.program()

    @property
    def pipeline(self) -> str:
        """The pipeline that optimized it, in text that parses back."""
        return self._compiled.pipeline

    @property
    def plan(self) -> str:
        """The pipeline without the lossy passes that were dropped: compile for another target with it."""
        return self._compiled.ledger.summary.plan

    @property
    def graphs(self) -> Mapping[str, GraphKernel]:
        """The kernels by graph: `forward`, and `prefill`, `decode` and `encode` where there is a cache."""
        return self._compiled.kernels

    @property
    def device(self) -> torch.device:
        """Where it runs and where inputs must be."""
        return self._compiled.device

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that came with the model, None where there was none. Raises MissingExtra without tokenizers."""
        text = self._compiled.tokenizer
        if self._tokenizer is None and text is not None:
            try:
                from tokenizers import Tokenizer
            except ImportError as error:
                raise MissingExtra("tokenizers", "hf", needed_for="the model's tokenizer") from error
            self._tokenizer = Tokenizer.from_str(text)
        return self._tokenizer

    def save(self, path: str | Path) -> None:
        """Write an artifact that `irx.load` reads without the compiler; an older one at `path` is replaced."""
        compiled = self._compiled
        artifact.save(
            path,
            facts=compiled.facts(),
            program=compiled.program(),
            ledger=compiled.ledger.to_json(),
            tokenizer=compiled.tokenizer,
            kernels=compiled.blobs,
            weights=compiled.weights,
        )

    def __repr__(self) -> str:
        return f"<Executable {self._compiled.name} on {self._compiled.device}: {', '.join(self._compiled.kernels)}>"

    # --- parts ------------------------------------------------------------------------------------------------------

    def _tree(self) -> Any:
        """The structure of the result; the graph's own outputs where none was captured."""
        names = list(self._forward.output_names)
        plain = names[0] if len(names) == 1 else ["tuple", {name: name for name in names}]
        return self._compiled.meta.get("output", {}).get("tree", plain)

    def _language_model(self) -> Decoder:
        if self._decoder is None:
            raise UnsupportedArgument(
                "this program has no cache, so it cannot generate",
                fix="the ledger's row of insert-cache says why; calls of forward work",
            )
        return self._decoder

    def _encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kernel = self._compiled.kernels.get("encode")
        if kernel is None:
            if inputs:
                raise UnsupportedArgument(f"a session got {', '.join(inputs)}, but this model has no encoder")
            return {}
        meta = {"inputs": self._compiled.meta.get("inputs", ())}
        arguments = Arguments(kernel.inputs, meta, self._compiled.sizes, str(self._compiled.device))
        return self._language_model().encoded(arguments.bind((), inputs))

    def _decoder_prompt(self, given: Tensor | None, encoder_inputs: Mapping[str, Tensor]) -> Tensor:
        if given is not None:
            return given
        start = self._compiled.meta.get("decoder_start")
        if start is None:
            raise UnsupportedArgument("the model names no token to start with", fix="pass decoder_input_ids")
        if not encoder_inputs:
            raise InputMismatch("generate needs the encoder's inputs")
        batch = len(next(iter(encoder_inputs.values())))
        return torch.full((batch, 1), int(start), dtype=torch.int64, device=self.device)

    def _tensor(self, ids: Ids | None) -> Tensor | None:
        """Ids as a tensor."""
        if ids is None or isinstance(ids, Tensor):
            return ids
        try:
            return torch.tensor(ids, dtype=torch.int64, device=self.device)
        except (TypeError, ValueError) as error:
            fix = "pad the rows and say so in attention_mask"
            raise InputMismatch("ids are no rows of token numbers, all of one length", fix=fix) from error

    def _prompt(self, ids: Tensor | None) -> Tensor:
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            shown = f"{ids.dtype}{list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
            raise InputMismatch(f"generate needs ids i64[batch, length], not {shown}")
        return ids.long()

    def _ends(self, eos: int | Sequence[int] | str | None, pad: int | None) -> tuple[frozenset[int], int]:
        """The tokens that end a row, and the one that fills it afterwards."""
        own = [int(token) for token in self._compiled.meta.get("eos") or ()]
        if isinstance(eos, str):
            if eos != "model":
                raise UnsupportedArgument(f"eos_token_id={eos!r}", fix='give a token, a list of tokens, or "model"')
            ends = own
        else:
            ends = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
        if pad is None:
            pad = self._compiled.meta.get("pad")
        return frozenset(ends), next((int(p) for p in (pad, *ends, *own) if p is not None), 0)


def _decoder(compiled: Compiled, lock: RLock) -> Decoder | None:
    """The cached graphs, None where there are none."""
    if not {"prefill", "decode"} <= compiled.kernels.keys():
        return None
    prefill = compiled.kernels["prefill"]
    tokens = next(v for v in prefill.inputs if v.name == compiled.meta["ids"])
    batch = compiled.sizes.get(str(tokens.shape[0]))
    return Decoder(
        prefill,
        compiled.kernels["decode"],
        compiled.kernels.get("encode"),
        compiled.meta,
        compiled.device,
        max_batch=batch.high if batch is not None else None,
        max_length=compiled.meta.get("max_length"),
        top=compiled.kernels.get("decode_top"),
        lock=lock,
    )
