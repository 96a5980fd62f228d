"""Which dtypes hold all values of which others."""

from __future__ import annotations

_WIDER: dict[str, tuple[str, ...]] = {
    "bool": ("u8", "i8", "i16", "i32", "i64", "f8e4m3", "f8e5m2", "f16", "bf16", "f32", "f64"),
    "u8": ("i16", "i32", "i64", "f16", "bf16", "f32", "f64"),
    "i8": ("i16", "i32", "i64", "f16", "bf16", "f32", "f64"),
    "i16": ("i32", "i64", "f32", "f64"),
    "i32": ("i64", "f64"),
    "f8e4m3": ("f16", "bf16", "f32", "f64"),
    "f8e5m2": ("f16", "bf16", "f32", "f64"),
    "f16": ("f32", "f64"),
    "bf16": ("f32", "f64"),
    "f32": ("f64",),
}


def holds(target: str, source: str) -> bool:
    """True when a cast from `source` to `target` and back changes no value."""
    return target == source or target in _WIDER.get(source, ())
