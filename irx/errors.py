"""Every error a user can see, one class each.

A message has up to three parts, always in this order: what happened, where (module path and source line, file, or place
in a pipeline), and what to do about it. A class with facts of its own takes them as arguments and writes the message
itself; the others take the three parts as they are:

    raise ExportFailed("torch.export could not trace the model", where="model.layers.3 (net.py:41)", fix="...")

Catch `IRXError` for all of them. The command line prints the message alone and exits with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

_SHOWN_PARTS = 5


class IRXError(Exception):
    """Base of every error that a user can cause or has to act on.

    `what` says what happened, `where` in which place, `fix` what to do; all three stay readable as attributes.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what = what
        self.where = where
        self.fix = fix
        super().__init__(self.format())

    def format(self) -> str:
        """The whole message, in one line unless a class draws more."""
        place = f"at {self.where}" if self.where else None
        return "; ".join(part for part in (self.what, place, self.fix) if part)

    def __reduce__(self) -> tuple[object, ...]:
        # The default would call __init__ with the finished message: wrong for every class with arguments of its own,
        # and a worker process that cannot send its error back looks like a crash.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[IRXError], args: tuple[object, ...], state: dict[str, object]) -> IRXError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


# --- names that nobody declared -------------------------------------------------------------------------------------


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that `name` most likely meant, or None. Case, `_` and `-` do not count as differences."""
    spelled = {_plain(choice): choice for choice in choices}
    close = difflib.get_close_matches(_plain(name), list(spelled), n=1, cutoff=0.6)
    return spelled[close[0]] if close else None


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


class UnknownName(IRXError):
    """A name that is not among the known ones; the message offers the nearest and lists them."""

    kind = "name"

    def __init__(self, name: str, choices: Iterable[str], *, where: str | None = None, fix: str | None = None) -> None:
        self.name = name
        self.choices = sorted(choices)
        self.suggestion = nearest(name, self.choices)
        guess = f"did you mean {self.suggestion!r}?" if self.suggestion else None
        known = f"known: {', '.join(self.choices) or 'none'}"
        advice = "; ".join(part for part in (guess, known, fix) if part)
        super().__init__(f"unknown {self.kind} {name!r}", where=where, fix=advice)


class UnknownTarget(UnknownName):
    """A target, device or backend name that nobody declared."""

    kind = "target"


class UnknownPass(UnknownName):
    """A pipeline names a pass that does not exist."""

    kind = "pass"


class UnknownCommand(UnknownName):
    """A subcommand that `irx` does not have."""

    kind = "command"


class UnknownOption(UnknownName):
    """An option that the pass or the call does not have."""

    kind = "option"


class UnknownPreset(UnknownName):
    """A pipeline preset that does not exist."""

    kind = "preset"


class UnknownOp(UnknownName):
    """An operation that is not in the registry."""

    kind = "op"


class UnknownArchitecture(UnknownName):
    """A GGUF file of an architecture that no builder knows."""

    kind = "architecture"


class NameClash(IRXError):
    """Two files or packages declare the same name."""

    def __init__(self, kind: str, name: str, first: str, second: str) -> None:
        self.name, self.first, self.second = name, first, second
        super().__init__(f"two of them declare the {kind} {name!r}: {first} and {second}", fix="rename one of the two")


class MissingExtra(IRXError):
    """An optional package is needed and not installed."""

    def __init__(self, package: str, extra: str, *, needed_for: str | None = None) -> None:
        self.package, self.extra = package, extra
        purpose = f", needed for {needed_for}," if needed_for else ""
        super().__init__(f"the package {package!r}{purpose} is not installed", fix=f"pip install 'irx[{extra}]'")


# --- from a model to a program --------------------------------------------------------------------------------------


class NotAModule(IRXError):
    """The first argument of `compile` is nothing that a frontend can read."""


class ModelNotFound(IRXError):
    """A model's path, or the package that should carry it, is not there."""


class ExportFailed(IRXError):
    """Tracing the model failed; `where` names the module path and the source line."""


class DataDependentControlFlow(ExportFailed):
    """The model branches on the value of a tensor, which no single graph can express."""


class ExampleMismatch(IRXError):
    """The example's shapes, dtypes or names contradict what the model's forward takes."""


class UnsupportedAttention(IRXError):
    """The model calls attention with an argument whose meaning would be lost."""


class DamagedFile(IRXError):
    """A model file is truncated or its contents contradict themselves."""


class UnsupportedFile(IRXError):
    """A model file is whole, but holds what no builder reads: a storage format, a tokenizer, a variant of a model."""


class TokenizerNeeded(IRXError):
    """Text was given where only ids can be used, and no tokenizer is known."""


# --- the program and its text ---------------------------------------------------------------------------------------


class ParseError(IRXError):
    """Text that does not parse: shows the place, the source line and a caret under the column (both from 1)."""

    def __init__(
        self, what: str, *, line: int, column: int, source: str = "", file: str = "<text>", fix: str | None = None
    ) -> None:
        self.line, self.column, self.source, self.file = line, column, source.rstrip("\n"), file
        super().__init__(what, where=f"{file}:{line}:{column}", fix=fix)

    def format(self) -> str:
        """`file:line:column: what`, then the source line and the caret."""
        head = "; ".join(part for part in (f"{self.where}: {self.what}", self.fix) if part)
        if not self.source:
            return head
        # Tabs are kept in front of the caret, so that it stands under its column in any terminal.
        margin = "".join("\t" if letter == "\t" else " " for letter in self.source[: self.column - 1])
        return f"{head}\n  {self.source}\n  {margin}^"


class TypeRuleError(IRXError):
    """An operation's type rule rejects its inputs or attributes."""

    def of(self, op: str) -> TypeRuleError:
        """The same error with the name of the op in front."""
        return TypeRuleError(f"{op}: {self.what}", where=self.where, fix=self.fix)

    def at(self, where: str) -> TypeRuleError:
        """The same error with its place in the model."""
        return TypeRuleError(self.what, where=where, fix=self.fix)


class UnboundWeight(IRXError):
    """A weight of a program read from text is needed and no array was bound to it."""

    def __init__(self, name: str) -> None:
        self.name = name
        advice = "bind it with program.weights.bind(name, load); `irx run` gives all of them random arrays"
        super().__init__(f"weight ${name} has no array", fix=advice)


class NoReference(IRXError):
    """The numpy evaluator met a function of torch, and was not given a way to call torch."""

    def __init__(self, target: str, *, where: str | None = None) -> None:
        self.target = target
        advice = "pass call=, a function that runs torch.call nodes, to the evaluator"
        super().__init__(f"{target} is a function of torch, without a numpy reference", where=where, fix=advice)


class VerifyError(IRXError):
    """A program breaks one of the verifier's numbered rules."""

    def __init__(self, rule: str | int, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.rule = rule
        super().__init__(f"verifier rule {rule}: {what}", where=where, fix=fix)


# --- the pipeline ---------------------------------------------------------------------------------------------------


class PipelineOrder(IRXError):
    """A pipeline names a pass after a pass of a later stage."""


class PassConflict(IRXError):
    """A pipeline holds two passes of which one declares the other as a conflict."""


class BadOption(IRXError):
    """An option exists, but not with this value."""


class PassRefused(IRXError):
    """With `strict`: a pass failed its check and its result was thrown away."""


class BudgetError(IRXError):
    """A budget that cannot be used: no limits, a metric without a maximum, or no data to measure it on."""


class BadData(IRXError):
    """Data that the model cannot be run on: of the wrong kind, with other inputs, or too few to hold some out."""


class CalibrationNeeded(IRXError):
    """A pass looks at what the model computes on the user's data, and got none."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} looks at what the model computes, and there are no data", fix="pass data= to compile")


class BadDevice(IRXError):
    """A device file lacks a field, has one too many, or one of the wrong kind."""


class DeviceNotFound(IRXError):
    """The target is this machine's GPU, and it has none that is known."""


class BadSchedules(IRXError):
    """A file of schedules is missing, damaged, or in a format that this version does not read."""


# --- calling what was compiled --------------------------------------------------------------------------------------


class UnsupportedArgument(IRXError):
    """A keyword that was not captured, so that the compiled model cannot honour it."""


class InputMismatch(IRXError):
    """An input of the wrong dtype, device, rank or size."""


class MaskError(IRXError):
    """An attention mask that is not [batch, length] of contiguous ones, padded on one side."""


class EmptyPrompt(IRXError):
    """A prompt without tokens."""


class PromptTooLong(IRXError):
    """Prompt and new tokens together exceed `max_length`."""

    def __init__(self, length: int, limit: int, *, where: str | None = None) -> None:
        self.length, self.limit = length, limit
        advice = f"shorten it, or compile with max_length={length} or more"
        super().__init__(f"{length} tokens are wanted, but max_length is {limit}", where=where, fix=advice)


class SharedPrefix(IRXError):
    """Rows were to be cut to fewer tokens than the prefix has that they share."""

    def __init__(self, wanted: int, prefix: int) -> None:
        super().__init__(
            f"a row cannot be cut to {wanted} tokens: its first {prefix} are a prefix that other rows share",
            fix="start a session with another prefix, or without one",
        )


class OutOfPages(IRXError):
    """The tokens of a session and its forks need more pages than the cache may have."""

    def __init__(self, wanted: int, most: int, page: int) -> None:
        self.wanted, self.most = wanted, most
        what = f"{wanted} pages of {page} tokens are wanted, but the cache of a session and its forks has {most}"
        super().__init__(what, fix=f"truncate or drop sessions, or compile with kv-paged{{pages={wanted}}} or more")


class TokensEvicted(IRXError):
    """A session is to go back behind tokens by which others were evicted from its cache."""

    def __init__(self, length: int, least: int) -> None:
        self.length, self.least = length, least
        what = f"a row cannot be truncated to {length} tokens: which of the first {least} stayed was decided at {least}"
        super().__init__(what, fix=f"truncate to {least} or more, or to 0, or fork the session before the prompt")


class BatchTooLarge(IRXError):
    """More rows than the executable was compiled for."""

    def __init__(self, batch: int, limit: int, *, where: str | None = None) -> None:
        self.batch, self.limit = batch, limit
        advice = f"split the batch, or compile with max_batch={batch} or more"
        super().__init__(f"a batch of {batch} rows, but max_batch is {limit}", where=where, fix=advice)


# --- saved models ---------------------------------------------------------------------------------------------------


class ArtifactError(IRXError):
    """A saved model that cannot be loaded; its subclasses say why."""


class DamagedArtifact(ArtifactError):
    """A file of the artifact is missing, truncated or altered."""


class ArtifactVersionMismatch(ArtifactError):
    """The artifact was written in a format that this version does not read."""


class CannotWrite(IRXError):
    """A file or folder cannot be written where the user asked for it."""


class MissingFeature(ArtifactError):
    """The artifact's kernels need an instruction set or a device that this machine lacks."""


class KernelFailed(IRXError):
    """A compiled kernel reported an error or could not be compiled."""


# --- GPUs -----------------------------------------------------------------------------------------------------------


class NoGpu(MissingFeature):
    """Kernels for a GPU are to run on a machine where no driver or no GPU answers."""


class OtherArchitecture(MissingFeature):
    """Binaries of one GPU architecture are to run on another, and cannot be built again here."""

    def __init__(self, made_for: str, here: str, *, fix: str) -> None:
        self.made_for, self.here = made_for, here
        super().__init__(f"the kernels were compiled for {made_for}, and this machine's GPU is {here}", fix=fix)


class DriverTooOld(MissingFeature):
    """The GPU's driver does not read binaries of this compiler."""


class KernelTooLarge(KernelFailed):
    """A kernel takes more shared memory or registers than the device has; it is never launched."""

    def __init__(self, kernel: str, reason: str) -> None:
        self.kernel, self.reason = kernel, reason
        super().__init__(f"the kernel {kernel} takes {reason}", fix="choose a smaller schedule: irx tune does")


class GpuOutOfMemory(IRXError):
    """The GPU's memory does not hold what a model needs; the message names the largest parts."""

    def __init__(self, free: int, parts: Mapping[str, int]) -> None:
        self.free, self.parts = free, dict(parts)
        largest = sorted(self.parts.items(), key=lambda part: -part[1])[:_SHOWN_PARTS]
        told = ", ".join(f"{name} {size / 1e9:.3g} GB" for name, size in largest)
        held = sum(self.parts.values()) / 1e9
        what = f"the GPU's memory is full: {free / 1e9:.3g} GB are free, the model holds {held:.3g} GB; largest: {told}"
        super().__init__(what, fix="use a smaller max_length or max_batch, or quantize the weights or the cache")
