"""Builds `prefill`, and `encode` where there is an encoder, from the captured graph.

Every node that depends on the decoder's tokens is copied. What it reads is one of four: a copied value, a value-free
one (see `positions.py`), a value of the encoder, which becomes an input of `prefill` and an output of `encode`, or an
attention site, which appends to its cache and reads that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

from irx.analysis.structure import attributes, between
from irx.analysis.values import ValueFree, dependent, inputs_of, node_names
from irx.errors import TypeRuleError
from irx.ir.dims import SymDim, names
from irx.ir.graph import Builder, Graph, Literal, Node, Value, Weight
from irx.ir.types import KVType, TensorType
from irx.ir.weights import Weights
from irx.passes.normalize.caching.bias import distance_table
from irx.passes.normalize.caching.frontier import Frontier
from irx.passes.normalize.caching.positions import Positions
from irx.passes.normalize.caching.refusal import NotCacheable
from irx.passes.normalize.caching.roles import Roles

_BY = "insert-cache"


@dataclass
class CachedSite:
    """One attention site with a cache: its node in the source, the name and type of its state, its distance table."""

    node: Node
    state: str
    type: KVType
    table: Weight | None

    @property
    def signature(self) -> str:
        """Equal for sites that one check covers."""
        operands = [str(v.type) if v is not None else "" for v in self.node.inputs]
        return f"{operands} {attributes(self.node)} {self.table.name if self.table is not None else ''}"


@dataclass
class Rebuild:
    """The conversion of one graph; `source` takes no masks and positions of the decoder. All methods raise
    NotCacheable."""

    source: Graph
    roles: Roles
    frontier: Frontier
    weights: Weights
    free: ValueFree
    prefill: Graph = field(default_factory=lambda: Graph("prefill"))
    sites: list[CachedSite] = field(default_factory=list)
    encoded: dict[Value, Value] = field(default_factory=dict)  # values of the encoder: in `source`, in `prefill`
    _mapping: dict[Value, Value] = field(default_factory=dict)
    _states: dict[tuple[Value, Value], tuple[str, Value]] = field(default_factory=dict)
    _tables: dict[Value, Weight | None] = field(default_factory=dict)

    def run(self) -> None:
        """Fill `prefill`, `sites` and `encoded`."""
        roles = self.roles
        tokens = self.prefill.add_input(roles.tokens.name, roles.tokens.type)
        pos = self.prefill.add_input("pos", TensorType((roles.batch, roles.length), "i64"))
        self.positions = Positions(self.prefill, pos, self.frontier, self.weights)
        self._mapping[roles.tokens] = tokens
        self._dependent = dependent(self.source, [roles.tokens])
        logits = dict(zip(self.source.output_names, self.source.outputs, strict=True))[roles.logits]
        needed = set(between([logits], ()))
        for node in self.source.nodes:
            if node in needed and any(v in self._dependent for v in node.outputs):
                self._node(node)
        self._finish(logits)

    def encode(self) -> Graph | None:
        """The graph of everything that does not depend on the decoder's tokens; None where there is none."""
        if not self.encoded:
            return None
        graph = Graph("encode")
        read = set(inputs_of(list(self.encoded)))
        mapping = {v: graph.add_input(v.name, v.type) for v in self.roles.encoder if v in read}
        for node in between(list(self.encoded), ()):
            mapping.update(zip(node.outputs, graph.add_copy(node, mapping).outputs, strict=True))
        graph.set_outputs({made.name: mapping[value] for value, made in self.encoded.items()})
        return graph

    def _finish(self, logits: Value) -> None:
        if not self.sites:
            raise NotCacheable("no causal attention over the tokens: there is nothing to cache")
        states = {site.state: self._states[_key(site.node)][1] for site in self.sites}
        self.prefill.set_outputs({self.roles.logits: self._mapping[logits], **states})
        kinds = {name: i for i, name in enumerate((self.roles.tokens.name, "pos"))}
        self.prefill.inputs.sort(key=lambda v: kinds.get(v.name, 3 if isinstance(v.type, KVType) else 2))

    def _node(self, node: Node) -> None:
        if node.op.name == "attention" and self._is_cached(node):
            self._mapping[node.output] = self._attention(node)
            return
        operands = [self._operand(v, node) for v in node.inputs]
        try:
            made = self.prefill.add(node.op, operands, node.attrs, loc=node.loc, names=[v.name for v in node.outputs])
        except TypeRuleError as error:
            raise NotCacheable(f"{error.what}, once positions are inputs", node) from error
        self._mapping.update(zip(node.outputs, made.outputs, strict=True))

    def _operand(self, value: Value | None, consumer: Node) -> Value | None:
        if value is None or isinstance(value, Literal):
            self._check_literal(value, consumer)
            return value
        if value in self._mapping:
            return self._mapping[value]
        if value in self.free:
            return self.positions.operand(value, consumer)
        return self._encoded(value, consumer)

    def _check_literal(self, value: Literal | None, consumer: Node) -> None:
        if value is not None and isinstance(value.value, SymDim) and self.roles.length.text in names(value.value):
            raise NotCacheable(f"{consumer.op.name} computes with the length {value.value} of the sequence", consumer)

    # --- the encoder's values ---------------------------------------------------------------------------------------

    def _encoded(self, value: Value, consumer: Node) -> Value:
        """An input for a value of the encoder; nodes that know the decoder's length are copied instead."""
        node = value.producer
        if not self._knows_length(value):
            made = self.prefill.add_input(self._encoder_name(value, consumer), value.type)
            self.encoded[value] = self._mapping[value] = made
            return made
        if node is None:
            raise NotCacheable(f"the input {value.name} has the tokens' length", consumer)
        self._node(node)
        return self._mapping[value]

    def _knows_length(self, value: Value) -> bool:
        length = self.roles.length.text
        if any(length in node_names(node) for node in between([value], ())):
            return True
        return any(length in map(str, v.shape) for v in inputs_of([value]))

    def _encoder_name(self, value: Value, consumer: Node) -> str:
        if consumer.op.name != "attention":
            return "encoded"
        place = [v is value for v in consumer.inputs].index(True)
        return f"cross_{consumer.op.operands[place].name}"

    def stored(self) -> Graph | None:
        """The source with the new tables in place of the values they hold; None where there are none.

        A constant is stored in its dtype, so it is rounded where the oracle computes on in float64. Against this graph
        a conversion has to be exact.
        """
        sites = [site for site in self.sites if site.table is not None]
        if not sites and not self.positions.stored:
            return None
        copy = self.source.clone()
        mapping = dict(zip(_values(self.source), _values(copy), strict=True))
        self.positions.store(copy, mapping)
        for site in sites:
            node = mapping[site.node.output].producer
            assert node is not None
            _store_bias(copy, node, cast(Weight, site.table), self.frontier)
        return copy

    # --- attention sites --------------------------------------------------------------------------------------------

    def _is_cached(self, node: Node) -> bool:
        """True for attention over the tokens themselves, False for attention over the encoder's."""
        q, k, v = node.inputs[:3]
        if (k in self._dependent) != (v in self._dependent):
            raise NotCacheable("of k and v only one depends on the tokens", node)
        if k not in self._dependent:
            return False
        if not node.attr("causal"):
            raise NotCacheable("attention over the tokens is not causal", node)
        if node.operand("mask") is not None:
            raise NotCacheable("the mask is neither full nor causal nor a sliding window", node)
        assert q is not None
        assert k is not None
        if q.shape[2] != self.roles.length or k.shape[2] != self.roles.length or q.shape[0] != self.roles.batch:
            raise NotCacheable(f"q {q.type} and k {k.type} are not over {self.roles.tokens.type}", node)
        return True

    def _attention(self, node: Node) -> Value:
        state, kv = self._append(node)
        sinks = node.operand("sinks")
        table = self._table(node)
        self.sites.append(CachedSite(node, state, _kv_type(node), table))
        builder = Builder(self.prefill, loc=node.loc.touched(_BY))
        operands = [self._operand(node.inputs[0], node), kv, self.positions.pos, table, self._operand(sinks, node)]
        while operands[-1] is None:
            operands.pop()
        attrs: dict[str, Any] = {name: node.attr(name) for name in ("scale", "window", "softcap")}
        return builder("kv_attention", *operands, **attrs)

    def _append(self, node: Node) -> tuple[str, Value]:
        """The state with this site's keys and values; sites that attend to the same ones share it."""
        key = _key(node)
        if key not in self._states:
            state = self.prefill.add_input(f"kv{len(self._states)}", _kv_type(node))
            builder = Builder(self.prefill, loc=node.loc.touched(_BY))
            k, v = (self._operand(value, node) for value in key)
            self._states[key] = state.name, builder("kv_append", state, k, v, self.positions.pos)
        return self._states[key]

    def _table(self, node: Node) -> Weight | None:
        bias = node.operand("bias")
        if bias is None:
            return None
        if bias not in self.free:
            raise NotCacheable(f"the bias %{bias.name} depends on inputs", node)
        if bias not in self._tables:
            self._tables[bias] = distance_table(node, bias, self.frontier, self.weights)
        return self._tables[bias]


def _values(graph: Graph) -> list[Value]:
    return [value for node in graph.nodes for value in node.outputs]


def _store_bias(graph: Graph, node: Node, table: Weight, frontier: Frontier) -> None:
    """Let an attention node read the bias that a table of distances gives."""
    b = Builder(graph, before=node)
    row = b("reshape", b("arange", stop=frontier.length), shape=(1, frontier.length))
    operands = list(node.inputs)
    operands[4] = b("relative_bias", row, table, keys=frontier.length)
    graph.replace(node.output, b("attention", *operands, **node.attrs))
    graph.erase(node)


def _key(node: Node) -> tuple[Value, Value]:
    k, v = node.inputs[1:3]
    return cast(Value, k), cast(Value, v)


def _kv_type(node: Node) -> KVType:
    k, v = _key(node)
    sizes = (k.shape[1], v.shape[1], k.shape[3], v.shape[3])
    if not all(isinstance(size, int) for size in sizes):
        raise NotCacheable(f"k {k.type} and v {v.type} must have fixed heads and head sizes", node)
    heads, value_heads, k_dim, v_dim = cast("tuple[int, int, int, int]", sizes)
    return KVType(heads, value_heads, k_dim, v_dim, k.dtype)
