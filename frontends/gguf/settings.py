"""The metadata of one architecture, read by key with checks: `block_count` of a llama file is `llama.block_count`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from irx.errors import UnsupportedFile
from irx.frontends.gguf.header import damaged
from irx.frontends.gguf.reader import GgufFile


@dataclass(frozen=True)
class Settings:
    """Typed access to `{architecture}.{key}` of a file."""

    file: GgufFile

    def has(self, key: str) -> bool:
        """Whether the file states `key`."""
        return self._name(key) in self.file.metadata

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number. Raises DamagedFile when it is missing without a default or is something else."""
        value = self._get(key, default)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, list):
            return self._same_for_all(key, value)
        raise self._wrong(key, value, "a whole number")

    def real(self, key: str, default: float | None = None) -> float:
        """A number, as the shortest decimal that is the stored float32: 1e-5, not 9.999999747378752e-06.

        Converters write float32 from the decimals of a model's own configuration, which this gives back exactly.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        single = np.float32(value)
        return float(str(single)) if float(single) == value else float(value)

    def text(self, key: str, default: str) -> str:
        """A text. Raises DamagedFile when it is something else."""
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def value(self, key: str) -> Any:
        """Whatever the file states, None when it states nothing."""
        return self.file.metadata.get(self._name(key))

    def keys(self, prefix: str) -> list[str]:
        """What follows `{architecture}.{prefix}` in every key that starts with it."""
        start = self._name(prefix)
        return [name.removeprefix(start) for name in self.file.metadata if name.startswith(start)]

    def token(self, role: str) -> int | None:
        """The id of the special token `role` (`bos`, `eos`, `padding`), None when it is not one of the vocabulary."""
        value = self.file.metadata.get(f"tokenizer.ggml.{role}_token_id")
        return value if isinstance(value, int) and 0 <= value < self.vocabulary else None

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding, padding included."""
        return self._embedding[0]

    @property
    def width(self) -> int:
        """The size of the residual stream."""
        stated = self.integer("embedding_length")
        if stated != self._embedding[1]:
            raise damaged(f"embedding_length is {stated}, the embedding has {self._embedding[1]}", *self._place())
        return stated

    @property
    def heads(self) -> int:
        """Query heads."""
        return self._positive("attention.head_count")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values; all query heads have their own when the file states none."""
        heads = self._positive("attention.head_count_kv", self.heads)
        if self.heads % heads:
            raise damaged(f"{heads} heads of keys cannot serve {self.heads} of queries", *self._place())
        return heads

    @property
    def head_dim(self) -> int:
        """Elements of a key's head. Raises UnsupportedFile when values have heads of another size."""
        size = self.integer("attention.key_length", self.width // self.heads)
        if self.integer("attention.value_length", size) != size:
            raise self.unsupported("heads of keys and of values that differ in size")
        return size

    def unsupported(self, what: str) -> UnsupportedFile:
        """The error for a variant of the architecture that is not built."""
        return UnsupportedFile(f"{self.file.architecture} with {what} is not supported", where=str(self.file.path))

    @property
    def _embedding(self) -> tuple[int, int]:
        tensor = self.file.tensors.get("token_embd.weight")
        if tensor is None or len(tensor.shape) != 2:
            raise damaged("there is no matrix token_embd.weight", self.file.path, "table of tensors")
        return tensor.shape[0], tensor.shape[1]

    def _name(self, key: str) -> str:
        return f"{self.file.architecture}.{key}"

    def _get(self, key: str, default: Any) -> Any:
        value = self.file.metadata.get(self._name(key), default)
        if value is None:
            raise damaged(f"the metadata {self._name(key)} is missing", *self._place())
        return value

    def _positive(self, key: str, default: int | None = None) -> int:
        value = self.integer(key, default)
        if value < 1:
            raise self._wrong(key, value, "a positive number")
        return value

    def _same_for_all(self, key: str, values: list[Any]) -> int:
        """Some keys may be stated layer by layer; only the same number for all layers can be built."""
        if not values or not all(isinstance(value, int) for value in values):
            raise self._wrong(key, values, "whole numbers")
        if len(set(values)) > 1:
            raise self.unsupported(f"a {key} that differs from layer to layer")
        return int(values[0])

    def _wrong(self, key: str, value: Any, wanted: str) -> Exception:
        return damaged(f"the metadata {self._name(key)} is {value!r}, not {wanted}", *self._place())

    def _place(self) -> tuple[Any, str]:
        return self.file.path, "metadata"
