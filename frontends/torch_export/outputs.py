"""The structure of what a model returns, as plain data, and names for its tensors."""

from __future__ import annotations

from typing import Any

from torch.utils import _pytree as pytree

Tree = Any
"""A tensor's name, None for what is no tensor, or [kind, {key: tree}], kind a class path, `tuple`, `list` or `dict`."""


def output_tree(spec: pytree.TreeSpec, is_tensor: list[bool]) -> tuple[Tree, list[str]]:
    """The tree of an output structure, and the names of its tensors in order.

    Fields are called after their key (`logits`, `hidden_states_0`), a plain tensor `output`, elements of a plain tuple
    `output_0`, `output_1`. `is_tensor` says for every leaf whether it is one.
    """
    leaves = iter(is_tensor)
    names: list[str] = []
    tree = _walk(spec, "", leaves, names)
    return tree, names


def _walk(spec: pytree.TreeSpec, prefix: str, leaves: Any, names: list[str]) -> Tree:
    if spec.is_leaf():
        if not next(leaves):
            return None
        names.append(prefix or "output")
        return names[-1]
    keys = _keys(spec)
    parts = {}
    for key, child in zip(keys, spec.children(), strict=True):
        plain = isinstance(key, int)
        name = f"{prefix or 'output'}_{key}" if plain or prefix else str(key)
        parts[str(key)] = _walk(child, name, leaves, names)
    return [_kind(spec), parts]


def _keys(spec: pytree.TreeSpec) -> list[Any]:
    """Field names where the structure has them, else positions."""
    context = spec.context
    listed = context if isinstance(context, (list, tuple)) else []
    if len(listed) == spec.num_children and all(isinstance(key, str) for key in listed):
        return list(listed)
    fields = getattr(context, "_fields", None)  # of a named tuple, whose class is the context
    return list(fields) if fields else list(range(spec.num_children))


def _kind(spec: pytree.TreeSpec) -> str:
    type = spec.context if hasattr(spec.context, "_fields") else spec.type
    return str(type.__name__) if type in (tuple, list, dict) else f"{type.__module__}.{type.__qualname__}"


def describe(tree: Tree) -> dict[str, Any]:
    """What a program records about its output: the class, its fields, the ones that hold no tensor, and the tree."""
    if not isinstance(tree, list):
        return {"class": "tensor", "fields": [tree], "dropped": [], "tree": tree}
    kind, parts = tree
    dropped = [key for key, part in parts.items() if part is None]
    return {"class": kind, "fields": [key for key in parts if key not in dropped], "dropped": dropped, "tree": tree}
