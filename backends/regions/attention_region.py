"""What an attention-anchored body computes: heads cut out of projections, rotated, kept in a state, attended to.

    q, k, v: views of projections [B, S, N] (or of anything else) -> rms_norm over a head -> rope
    k, v -> kv_append;  q -> kv_attention, or q, k, v -> attention;  the result in the order of its reader

Nothing is copied to cut heads out: a view says where their elements lie. A lone node of these ops is such a body too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from irx.backends.regions.lowered import Refusal
from irx.backends.regions.views import View, row_major, viewed, whole
from irx.ir.dims import Dim
from irx.ir.graph import Graph, Literal, Node, Value
from irx.ir.types import KVType

ANCHORS = ("attention", "kv_attention", "kv_append", "rope")
_VIEWS = ("reshape", "permute", "slice", "expand")
FLOATS = ("f32", "bf16", "f16")


@dataclass(frozen=True)
class HeadNorm:
    """An rms_norm over the channels of each head."""

    weight: Value | None
    eps: float


@dataclass(frozen=True)
class Rotation:
    """A rope: positions i64 [1 or B, S] as a view, negative ones taken as 0; inv_freq f32 of `pairs` elements."""

    positions: View
    inv_freq: Value
    pairs: int
    style: str
    scale: float


@dataclass(frozen=True)
class Heads:
    """A tensor [B, H, S, D] that is not in memory: where its source lies, and what is done to each head."""

    view: View
    norm: HeadNorm | None = None
    rotation: Rotation | None = None

    @property
    def dtype(self) -> str:
        """Of the source."""
        return self.view.base.dtype

    @property
    def size(self) -> int:
        """Channels of a head."""
        return cast("int", self.view.shape[3])

    @property
    def count(self) -> int:
        """Heads."""
        return cast("int", self.view.shape[1])


@dataclass(frozen=True)
class Append:
    """Keys and values that go into a state, at slot positions[b, s], if that is not negative."""

    state: Value
    kv: KVType
    k: Heads
    v: Heads
    positions: View


@dataclass(frozen=True)
class Attend:
    """An attention: to a state (`state`, `positions`) or to `k` and `v`. `mask` and `bias` are [B, H, S, T] views.

    Of a state the `first` tokens are seen besides those of a window.
    """

    q: Heads
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    sinks: Value | None = None
    first: int = 0
    state: Value | None = None
    kv: KVType | None = None
    positions: View | None = None
    table: Value | None = None
    k: Heads | None = None
    v: Heads | None = None
    mask: View | None = None
    bias: View | None = None


@dataclass(frozen=True)
class Result:
    """An output of the body, contiguous there: the strides of its [B, H, S, D] axes."""

    value: Value
    strides: tuple[Dim, ...]


@dataclass(frozen=True)
class Region:
    """A parsed body. `rotated` are heads that are an output themselves."""

    attend: Attend | None
    append: Append | None
    result: Result | None
    rotated: tuple[tuple[Heads, Result], ...]


def parse(body: Graph) -> Region | None:
    """The region, None where the body has no op of attention. Raises Refusal for what no kernel here computes."""
    if not any(node.op.name in ANCHORS for node in body.nodes):
        return None
    return _Parser(body).region()


@dataclass(frozen=True)
class _Ordered:
    """The attention's result with its axes [b, h, s, d] in another order, reshaped or not."""

    order: tuple[int, ...]


class _Parser:
    def __init__(self, body: Graph) -> None:
        self.body = body
        self.views: dict[Value, Heads] = {}
        self.states: dict[Value, Append | Value] = {}
        self.ordered: dict[Value, _Ordered] = {}
        self.attend: Attend | None = None
        self.append: Append | None = None
        self.result: Value | None = None

    def region(self) -> Region:
        for value in self.body.inputs:
            if isinstance(value.type, KVType):
                self.states[value] = value
            else:
                self.views[value] = Heads(whole(value))
        for node in self.body.nodes:
            self._node(node)
        return self._outputs()

    def _node(self, node: Node) -> None:
        name = node.op.name
        source = node.inputs[0] if node.inputs else None
        if name in _VIEWS and source in self.ordered:
            assert source is not None
            self._reorder(node, self.ordered[source])
        elif name in _VIEWS:
            self._view(node)
        elif name == "maximum":
            self._clamped(node)
        elif name in ("rms_norm", "rope", "kv_append", "kv_attention", "attention"):
            getattr(self, f"_{name}")(node)
        else:
            raise Refusal(f"{name} beside attention")

    def _heads(self, value: Value | None) -> Heads:
        if value is None or value not in self.views:
            raise Refusal(f"{value!r} is no view of an input")
        return self.views[value]

    def _view(self, node: Node) -> None:
        source = self._heads(node.inputs[0])
        view = viewed(source.view, node)
        if view is None:
            raise Refusal(f"%{node.output.name} is no view of %{source.view.base.name}")
        if source.rotation is not None or (source.norm is not None and view.shape[-1] != source.view.shape[-1]):
            raise Refusal(f"{node.op.name} of heads that are {'rotated' if source.rotation else 'normalised'} already")
        self.views[node.output] = replace(source, view=view)

    def _clamped(self, node: Node) -> None:
        """maximum(positions, 0): rope takes negative positions as 0 anyway, because padding's result is ignored."""
        bound = node.inputs[1]
        if not isinstance(bound, Literal) or bound.value != 0 or node.output.dtype not in ("i64", "i32"):
            raise Refusal("maximum beside attention")
        self.views[node.output] = self._heads(node.inputs[0])

    def _rms_norm(self, node: Node) -> None:
        source, weight = self._heads(node.inputs[0]), node.operand("weight")
        if source.norm is not None or source.rotation is not None or source.view.strides[-1] != 1:
            raise Refusal("a norm of heads that are normalised, rotated or not contiguous")
        if weight is not None and weight not in self.body.inputs:
            raise Refusal("the norm's weight is computed in the region")
        self.views[node.output] = replace(source, norm=HeadNorm(weight, float(cast("float", node.attr("eps")))))

    def _rope(self, node: Node) -> None:
        source, positions = self._heads(node.inputs[0]), self._heads(node.inputs[1]).view
        inv_freq = node.inputs[2]
        if source.rotation is not None:
            raise Refusal("heads that are rotated twice")
        if inv_freq not in self.body.inputs or inv_freq is None or inv_freq.dtype != "f32":
            raise Refusal("frequencies that are computed in the region, or not f32")
        if positions.base.dtype != "i64" or not isinstance(inv_freq.shape[0], int):
            raise Refusal(f"rope with positions {positions.base!r} and frequencies {inv_freq!r}")
        rotation = Rotation(
            positions,
            inv_freq,
            inv_freq.shape[0],
            str(node.attr("style")),
            float(cast("float", node.attr("scale"))),
        )
        self.views[node.output] = replace(_checked(source, "rope"), rotation=rotation)

    def _kv_append(self, node: Node) -> None:
        state = self.states.get(cast("Value", node.inputs[0]))
        if self.append is not None or self.attend is not None or not isinstance(state, Value):
            raise Refusal("two appends to states, or one after attention")
        kv = node.output.type
        assert isinstance(kv, KVType)
        k, v = (_checked(self._heads(x), "kv_append") for x in node.inputs[1:3])
        if v.rotation is not None or v.norm is not None:
            raise Refusal("values that are rotated or normalised")
        self.append = Append(state, kv, k, v, self._positions(node.operand("slots") or node.inputs[3]))
        self.states[node.output] = self.append

    def _positions(self, value: Value | None) -> View:
        view = self._heads(value).view
        if view.base is not value or view.base.dtype != "i64":
            raise Refusal("positions that are no input of the region")
        return view

    def _kv_attention(self, node: Node) -> None:
        state = self.states.get(cast("Value", node.inputs[1]))
        if state is None or (self.append is not None and state is not self.append):
            raise Refusal("a state that is computed in the region, or another than the one appended to")
        if not node.attr("causal"):
            raise Refusal("attention to all tokens of a state, whose number kernels are not told")
        kv = cast("Value", node.inputs[1]).type
        assert isinstance(kv, KVType)
        if kv.kept is not None and (node.attr("window") is not None or node.operand("table") is not None):
            raise Refusal("distances between tokens, of which some are gone: slots do not tell them")
        base = self._common(node)
        if kv.window is not None and node.operand("slots") is not None and base.q.view.shape[2] == 1:
            base = replace(base, window=None)  # a ring holds what one token sees, and nothing else
        elif base.window is not None:
            base = replace(base, first=int(cast("int", node.attr("first"))))
        self._finish(
            node,
            replace(
                base,
                state=state.state if isinstance(state, Append) else state,
                kv=kv,
                positions=self._positions(node.operand("slots") or node.inputs[2]),
                table=self._input(node.operand("table")),
            ),
        )

    def _attention(self, node: Node) -> None:
        k, v = (_checked(self._heads(x), "attention") for x in node.inputs[1:3])
        if v.rotation is not None or v.norm is not None:
            raise Refusal("values that are rotated or normalised")
        q = self._heads(node.inputs[0])
        full = (q.view.shape[0], q.view.shape[1], q.view.shape[2], k.view.shape[2])
        mask, bias = (self._broadcast(node.operand(name), full) for name in ("mask", "bias"))
        if bias is not None and bias.base.dtype not in FLOATS:
            raise Refusal(f"a bias of dtype {bias.base.dtype}")
        self._finish(node, replace(self._common(node), k=k, v=v, mask=mask, bias=bias))

    def _common(self, node: Node) -> Attend:
        if self.attend is not None:
            raise Refusal("two attentions")
        window, softcap = node.attr("window"), node.attr("softcap")
        return Attend(
            _checked(self._heads(node.inputs[0]), node.op.name),
            float(cast("float", node.attr("scale"))),
            bool(node.attr("causal")),
            None if window is None else int(cast("int", window)),
            None if softcap is None else float(cast("float", softcap)),
            self._input(node.operand("sinks")),
        )

    def _finish(self, node: Node, attend: Attend) -> None:
        self.attend = attend
        self.result = node.output
        self.ordered[node.output] = _Ordered((0, 1, 2, 3))

    def _input(self, value: Value | None) -> Value | None:
        if value is None:
            return None
        if value not in self.body.inputs or value.dtype not in FLOATS:
            raise Refusal(f"%{value.name} is computed in the region, or of dtype {value.dtype}")
        return value

    def _broadcast(self, value: Value | None, full: tuple[Dim, ...]) -> View | None:
        if value is None:
            return None
        view = self._heads(value).view
        shape = (*([1] * (4 - len(view.shape))), *view.shape)
        strides = (*([0] * (4 - len(view.shape))), *view.strides)
        kept: list[Dim] = [s if size == wanted else 0 for s, size, wanted in zip(strides, shape, full, strict=True)]
        return View(view.base, full, tuple(kept), view.offset)

    def _reorder(self, node: Node, before: _Ordered) -> None:
        """permute, then reshapes: only the order of the axes in memory matters."""
        if node.op.name == "permute":
            shape = tuple(cast("Value", node.inputs[0]).shape)
            assert self.result is not None
            if shape != tuple(self.result.shape[i] for i in before.order):
                raise Refusal("the result is reshaped, then permuted")
            order = tuple(before.order[i] for i in cast("tuple[int, ...]", node.attr("order")))
            self.ordered[node.output] = _Ordered(order)
        elif node.op.name == "reshape":
            self.ordered[node.output] = before
        else:
            raise Refusal(f"{node.op.name} of the attention's result")

    def _outputs(self) -> Region:
        result: Result | None = None
        rotated = []
        for value in self.body.outputs:
            if isinstance(value.type, KVType):
                continue
            if value in self.ordered and result is None:
                result = Result(value, self._strides(self.ordered[value].order))
            elif value in self.views and value.producer is not None and value.producer.op.name == "rope":
                rotated.append((self.views[value], Result(value, row_major(value.shape))))
            else:
                raise Refusal(f"the output %{value.name} is no result of attention")
            if value.dtype not in FLOATS:
                raise Refusal(f"an output of dtype {value.dtype}")
        if self.attend is not None and result is None:
            raise Refusal("the attention's result is not returned")
        return Region(self.attend, self.append, result, tuple(rotated))

    def _strides(self, order: tuple[int, ...]) -> tuple[Dim, ...]:
        """The strides of the axes [b, h, s, d] in a buffer that holds them in `order`."""
        assert self.result is not None
        stored = row_major([self.result.shape[i] for i in order])
        return tuple(stored[order.index(axis)] for axis in range(4))


def _checked(heads: Heads, op: str) -> Heads:
    """Heads as kernels read them: [B, H, S, D] of known H and D, channels beside each other."""
    view = heads.view
    if len(view.shape) != 4 or not isinstance(view.shape[1], int) or not isinstance(view.shape[3], int):
        raise Refusal(f"{op} of heads {view.shape} whose number or size is not known")
    if view.strides[3] != 1 and view.shape[3] != 1:
        raise Refusal(f"{op} of heads whose channels do not lie beside each other")
    if heads.dtype not in FLOATS:
        raise Refusal(f"{op} of dtype {heads.dtype}")
    return heads
