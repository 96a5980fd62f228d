"""Types of values: dtypes, tensors and KV states. Immutable, and printed as they are written in the text form.

`bf16[B, S, 1024]` is a tensor; `kv<heads=3, dim=64, dense, bf16, cap=T>` is the state of one attention site's cache.
Literals have one of the weak dtypes `bool_`, `int_`, `float_`: as in torch, they adopt the dtype of the tensor they
meet. Block-quantized weights (`q4_1[576, 1536]`) are tensors whose dtype is a storage format of `irx.ir.blocks`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from irx.ir import blocks
from irx.ir.codes import code_bytes
from irx.ir.dims import Dim, product

_NUMPY: dict[str, str] = {
    "bool": "bool",
    "u8": "uint8",
    "i8": "int8",
    "i16": "int16",
    "i32": "int32",
    "i64": "int64",
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
}
_ML_DTYPES: dict[str, str] = {"bf16": "bfloat16", "f8e4m3": "float8_e4m3fn", "f8e5m2": "float8_e5m2"}
_BYTES = {"bool": 1, "u8": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "f16": 2, "f32": 4, "f64": 8, "bf16": 2}
_BYTES |= {"f8e4m3": 1, "f8e5m2": 1, "bool_": 0, "int_": 0, "float_": 0}

FLOATS = ("f8e4m3", "f8e5m2", "f16", "bf16", "f32", "f64")
INTEGERS = ("u8", "i8", "i16", "i32", "i64")
WEAK = ("bool_", "int_", "float_")
DTYPES = ("bool", *INTEGERS, *FLOATS)


def is_float(dtype: str) -> bool:
    """True for floating-point dtypes, the weak one included."""
    return dtype in FLOATS or dtype == "float_"


def is_packed(dtype: str) -> bool:
    """True for block-quantized storage formats, which only `irx.dequantize` and packed kernels read."""
    return dtype in blocks.FORMATS


def is_dtype(name: str) -> bool:
    """True if `name` may stand before the bracket of a tensor type."""
    return name in _BYTES or is_packed(name)


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that stores `dtype`; uint8 for packed formats; weak dtypes map to their defaults."""
    if is_packed(dtype):
        return np.dtype("uint8")
    if dtype in _ML_DTYPES:
        import ml_dtypes

        extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, _ML_DTYPES[dtype]))
        return extended
    name = {"bool_": "bool", "int_": "int64", "float_": "float32"}.get(dtype) or _NUMPY[dtype]
    plain: np.dtype[Any] = np.dtype(name)
    return plain


def dtype_of(array_dtype: np.dtype[Any]) -> str:
    """The IR dtype of a numpy dtype. Raises KeyError for one the IR does not have."""
    names = {v: k for k, v in (_NUMPY | _ML_DTYPES).items()}
    return names[array_dtype.name]


def promote(*dtypes: str) -> str:
    """The dtype of an elementwise result, by torch's rules: category first, then width; weak dtypes only lift category.

    >>> promote("bf16", "float_"), promote("i64", "float_"), promote("bf16", "f32")
    ('bf16', 'f32', 'f32')
    """
    strong = [d for d in dtypes if d not in WEAK]
    weak = [d for d in dtypes if d in WEAK]
    result = strong[0] if strong else weak[0]
    for dtype in strong[1:]:
        result = _promote_strong(result, dtype)
    for dtype in weak:
        result = _promote_weak(result, dtype)
    return result


def _promote_strong(a: str, b: str) -> str:
    if a == b:
        return a
    if _category(a) != _category(b):
        return a if _category(a) > _category(b) else b
    if is_float(a):
        wide = max(_BYTES[a], _BYTES[b])
        return {8: "f64", 4: "f32"}.get(wide, "f32")  # f16 with bf16 gives f32
    if "u8" in (a, b) and "i8" in (a, b):
        return "i16"
    return a if _BYTES[a] >= _BYTES[b] else b


def _promote_weak(a: str, weak: str) -> str:
    if _category(a) >= _category(weak):
        return a
    if a in WEAK:
        return weak
    return {"bool_": "bool", "int_": "i64", "float_": "f32"}[weak]


def _category(dtype: str) -> int:
    if dtype in ("bool", "bool_"):
        return 0
    return 2 if is_float(dtype) else 1


def item_bytes(dtype: str) -> float:
    """Bytes one element takes in memory; a fraction for packed formats, scales included."""
    if is_packed(dtype):
        form = blocks.FORMATS[dtype]
        return form.bytes / form.elements
    return _BYTES[dtype]


@dataclass(frozen=True)
class TensorType:
    """A tensor's shape and dtype. A packed dtype keeps the logical shape: `q4_1[576, 1536]` has 1536 elements a row."""

    shape: tuple[Dim, ...]
    dtype: str

    @property
    def rank(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @property
    def elements(self) -> Dim:
        """How many elements there are."""
        return product(self.shape)

    def with_shape(self, *shape: Dim) -> TensorType:
        """The same dtype in another shape."""
        return TensorType(tuple(shape), self.dtype)

    def with_dtype(self, dtype: str) -> TensorType:
        """The same shape in another dtype."""
        return replace(self, dtype=dtype)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class KVType:
    """The cache of one attention site: what is stored per token, how, and how much of it.

    `layout` is how slots lie in memory: `dense`, a row per slot, or `blocked`, 16 slots beside each other, which a CPU
    reads without horizontal sums. A dtype of i8 keeps one f32 scale per token and head.

    `code` says how tokens of that dtype are stored where they are not stored as they are: `token8` and `token4` keep
    codes of 8 and 4 bits, and for each token and head a float16 step and a float16 value of code 0. `kivi2-32-128` and
    the like keep codes in groups, and the newest tokens as they are: see `irx.ir.codes`.

    `heads` is the number of key heads, `value_heads` that of value heads (equal for every model seen so far, but a
    cache pass may change one). `k_dim` and `v_dim` are elements per head. `capacity` is in tokens, `None` when the
    runtime chooses it. `shared_with` names the site whose cache this one reads.

    `kept` is the share of a sequence's tokens that is held, where some go and slots are no positions; 1 where the share
    is not known. None: a state holds all tokens, each in the slot of its position.

    `window`: nothing reads tokens that are as far or further behind the newest, but for the first `sinks`, so a state
    need not hold them. None: any token may be read.

    `prefix`: the first tokens may be those of another state, of one row, that all rows share; slots count from them on.

    `page`: slots lie in pages of so many, which rows take as they grow, wherever there are some; a table says which.
    `pages` is how many there may be for all rows of a session and its forks; None is as many as memory has.
    """

    heads: int
    value_heads: int
    k_dim: int
    v_dim: int
    dtype: str
    layout: str = "dense"
    capacity: Dim | None = None
    shared_with: str | None = None
    code: str | None = None
    kept: float | None = None
    prefix: bool = False
    window: int | None = None
    sinks: int = 0
    page: int | None = None
    pages: int | None = None

    @property
    def storage(self) -> str:
        """How keys and values are stored: the code, or the dtype."""
        return self.code or self.dtype

    @property
    def bytes_per_token(self) -> float:
        """Bytes one more token costs, in one row of the batch."""
        if self.code is not None:
            sides = ((self.heads, self.k_dim), (self.value_heads, self.v_dim))
            return sum(heads * code_bytes(self.code, dim) for heads, dim in sides)
        scales = 4 * (self.heads + self.value_heads) if self.dtype == "i8" else 0
        return (self.heads * self.k_dim + self.value_heads * self.v_dim) * item_bytes(self.dtype) + scales

    def __str__(self) -> str:
        parts = [f"heads={self.heads}"]
        parts += [f"value_heads={self.value_heads}"] if self.value_heads != self.heads else []
        parts += [f"dim={self.k_dim}"] if self.k_dim == self.v_dim else [f"k_dim={self.k_dim}", f"v_dim={self.v_dim}"]
        parts += [self.layout, self.dtype]
        parts += [f"code={self.code}"] if self.code is not None else []
        parts += [f"cap={self.capacity}"] if self.capacity is not None else []
        parts += [f"shared_with={self.shared_with}"] if self.shared_with is not None else []
        parts += [f"kept={self.kept}"] if self.kept is not None else []
        parts += ["prefix=shared"] if self.prefix else []
        parts += [f"window={self.window}"] if self.window is not None else []
        parts += [f"sinks={self.sinks}"] if self.sinks else []
        parts += [f"page={self.page}"] if self.page is not None else []
        parts += [f"pages={self.pages}"] if self.pages is not None else []
        return f"kv<{', '.join(parts)}>"


Type: TypeAlias = TensorType | KVType
