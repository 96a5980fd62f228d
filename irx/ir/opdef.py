"""How an operation is declared: one class with everything the compiler knows about it.

    class Silu(OpDef):
        '''x * sigmoid(x).'''

        name = "silu"

        @staticmethod
        def infer(x: TensorType) -> TensorType:
            return x

        @staticmethod
        def reference(x: Array) -> Array:
            return x / (1 + np.exp(-x))

        @staticmethod
        def flops(x: TensorType) -> Dim:
            return 4 * x.elements

The signature of `infer` is the op's signature: positional parameters are operands (`| None` makes one optional,
`*xs` takes any number), keyword-only parameters are attributes with their annotations and defaults. `reference` and
`flops` take the same arguments, as numpy arrays and as types. Subclassing registers; a missing part is an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from irx.errors import NameClash, TypeRuleError, UnknownOp, UnknownOption
from irx.ir.dims import Dim, SymDim
from irx.ir.types import TensorType, Type, is_packed, item_bytes

if TYPE_CHECKING:
    from irx.ir.graph import Graph

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class Operand:
    """Stands for operand `index` inside an attribute, as in the arguments of `torch.call`; printed `#0`."""

    index: int


Attr: TypeAlias = "None | bool | int | float | str | SymDim | TensorType | Operand | Graph | tuple[Attr, ...]"


@dataclass(frozen=True)
class Tolerance:
    """Largest allowed max|y - reference| / max|reference| of a kernel, by the dtype it computes in."""

    f32: float = 1e-5
    bf16: float = 2e-2
    f16: float = 4e-3

    def of(self, dtype: str) -> float:
        """The bound for `dtype`; integer and boolean results must be equal."""
        return {"f64": 1e-12, "f32": self.f32, "bf16": self.bf16, "f16": self.f16}.get(dtype, 0.0)


@dataclass(frozen=True)
class Parameter:
    """One operand or attribute of an op: name, annotation text, and a default where it may be left out."""

    name: str
    annotation: str
    required: bool
    variadic: bool = False
    default: Attr = None

    @property
    def optional(self) -> bool:
        """True where None may stand for the operand."""
        return "None" in self.annotation


class OpDef:
    """Base of all op declarations; see the module's docstring. `pure` ops may be removed when unused and merged when
    equal; `commutative` ops may have their first two operands exchanged; `elementwise` ops map element to element.
    An op that takes a KV state and gives one replaces it, unless it `copies_state`: then the old one stays valid."""

    name: ClassVar[str]
    pure: ClassVar[bool] = True
    commutative: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    copies_state: ClassVar[bool] = False
    streamed: ClassVar[tuple[str, ...]] = ()
    tolerance: ClassVar[Tolerance] = Tolerance()
    operands: ClassVar[tuple[Parameter, ...]]
    attributes: ClassVar[dict[str, Parameter]]

    infer: ClassVar[Callable[..., Any]]
    reference: ClassVar[Callable[..., Any]]
    flops: ClassVar[Callable[..., Dim]]

    def __init_subclass__(cls) -> None:
        if "name" not in cls.__dict__:
            return  # an intermediate base shared by one family
        missing = [part for part in ("infer", "reference", "flops", "__doc__") if not getattr(cls, part, None)]
        if missing:
            raise TypeError(f"op {cls.name!r} lacks {', '.join(missing)}")
        cls.operands, cls.attributes = _parameters(cls.infer)
        _register(cls)

    @classmethod
    def qualified(cls) -> str:
        """The name in the text form: `irx.silu`, `torch.call`."""
        return cls.name if "." in cls.name else f"irx.{cls.name}"

    @classmethod
    def types(cls, operands: Sequence[Type | None], attrs: Mapping[str, Attr]) -> tuple[Type, ...]:
        """Types of the results. Raises TypeRuleError where operands or attributes do not fit the declaration."""
        cls._check(operands, attrs)
        try:
            result = cls.infer(*operands, **attrs)
        except TypeRuleError as error:
            raise error.of(cls.qualified()) from None
        return result if isinstance(result, tuple) else (result,)

    @classmethod
    def bytes(cls, operands: Sequence[Type | None], results: Sequence[Type]) -> Dim:
        """Bytes read and written when nothing is fused: every operand once, every result once."""
        total: Dim = 0
        for item in (*operands, *results):
            if isinstance(item, TensorType):
                total = total + tensor_bytes(item)
        return total

    @classmethod
    def complete(cls, attrs: Mapping[str, Attr]) -> dict[str, Attr]:
        """`attrs` with the defaults filled in, in declaration order."""
        return {name: attrs.get(name, p.default) for name, p in cls.attributes.items()}

    @classmethod
    def _check(cls, operands: Sequence[Type | None], attrs: Mapping[str, Attr]) -> None:
        for name in attrs:
            if name not in cls.attributes:
                raise UnknownOption(name, cls.attributes, where=cls.qualified())
        for name, parameter in cls.attributes.items():
            if parameter.required and name not in attrs:
                raise TypeRuleError(f"attribute {name!r} is missing").of(cls.qualified())
        _check_operands(cls, operands)


def _check_operands(cls: type[OpDef], operands: Sequence[Type | None]) -> None:
    variadic = bool(cls.operands) and cls.operands[-1].variadic
    least = sum(p.required and not p.variadic for p in cls.operands)
    if len(operands) < least or (len(operands) > len(cls.operands) and not variadic):
        raise TypeRuleError(f"takes {len(cls.operands)} operands, got {len(operands)}").of(cls.qualified())
    for parameter, operand in zip(cls.operands, operands, strict=False):
        if operand is None and not parameter.optional:
            raise TypeRuleError(f"operand {parameter.name!r} must not be none").of(cls.qualified())
        if operand is not None and type(operand).__name__ not in parameter.annotation:
            raise TypeRuleError(f"operand {parameter.name!r} has the wrong kind of type: {operand}").of(cls.qualified())


def tensor_bytes(tensor: TensorType) -> Dim:
    """Bytes the tensor takes in memory."""
    if is_packed(tensor.dtype):
        from irx.ir.blocks import FORMATS

        form = FORMATS[tensor.dtype]
        return tensor.elements * form.bytes // form.elements
    return tensor.elements * int(item_bytes(tensor.dtype))


_REGISTRY: dict[str, type[OpDef]] = {}


def registry() -> Mapping[str, type[OpDef]]:
    """All declared ops by name. `import irx.ops` declares the built-in ones."""
    return _REGISTRY


def lookup(name: str) -> type[OpDef]:
    """The op of that plain or qualified name. Raises UnknownOp naming the nearest one."""
    found = _REGISTRY.get(name.removeprefix("irx."))
    if found is None:
        raise UnknownOp(name, list(_REGISTRY))
    return found


def _register(cls: type[OpDef]) -> None:
    other = _REGISTRY.get(cls.name)
    if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise NameClash("op", cls.name, other.__module__, cls.__module__)
    _REGISTRY[cls.name] = cls


def _parameters(infer: Callable[..., Any]) -> tuple[tuple[Parameter, ...], dict[str, Parameter]]:
    operands: list[Parameter] = []
    attributes: dict[str, Parameter] = {}
    for p in inspect.signature(infer).parameters.values():
        required = p.default is inspect.Parameter.empty
        default = None if required else p.default
        variadic = p.kind is inspect.Parameter.VAR_POSITIONAL
        parameter = Parameter(p.name, str(p.annotation), required, variadic, default)
        if p.kind is inspect.Parameter.KEYWORD_ONLY:
            attributes[p.name] = parameter
        else:
            operands.append(parameter)
    return tuple(operands), attributes


def as_float64(array: Array) -> Array:
    """Float arrays as float64, the precision of the oracle; others unchanged."""
    return array if array.dtype.kind in "iub" else np.asarray(array, dtype=np.float64)
