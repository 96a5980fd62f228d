"""The transformer blocks of a graph, found from its structure alone: residual sums, and what they add to the stream.

    %n = irx.rms_norm(%x, ...)              a unit: `start` is %x, `end` is %y, `terms` is (%b,)
    ...                                     `nodes` is everything here that depends on %x
    %y = irx.add(%x, %b)

A sum is residual where one of what it adds, the stream, leads to all of the others, and these hold products. Norms may
stand before a branch, in it, behind the sum (post-norm: `end` is then the norm's result), or at several of these. In a
parallel block one sum closes an attention and an MLP unit of the same stream. A sum inside the branch of another one
closes no unit; a sum that jumps over whole attention units is a long skip connection, and closes none either.

Works on graphs that are not fused: `forward`, `encode`, `prefill` and `decode`. Their blocks correspond in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from irx.ir.graph import Graph, Node, Value, Weight
from irx.ir.graph import Literal as Scalar
from irx.ir.program import Program
from irx.ir.types import KVType

Kind = Literal["attention", "mlp"]

_ATTENTION = frozenset({"attention", "attention_lse", "kv_attention"})
_PRODUCTS = _ATTENTION | {"linear", "matmul", "moe", "conv1d", "conv2d", "torch.call"}
_NORMS = frozenset({"rms_norm", "layer_norm"})
_GLUE = frozenset({"reshape", "permute", "cast", "slice", "gather_tokens", "merge_tokens"})


@dataclass(frozen=True, eq=False)
class Unit:
    """One update of the stream: `end` is `start` plus `terms`, and normed where `normed`.

    `nodes` depend on `start` and compute the terms, in execution order, the sums left out; of a parallel block's units
    both list what they share. `states` are the graph's KV inputs that the branch appends to.
    """

    kind: Kind
    start: Value
    end: Value
    total: Value
    """The result of the residual sum; `end` itself unless a norm follows."""
    terms: tuple[Value, ...]
    nodes: tuple[Node, ...]
    states: tuple[Value, ...] = ()

    @property
    def normed(self) -> bool:
        """True in a post-norm model: a norm of the sum is the next stream."""
        return self.end is not self.total

    @property
    def attention(self) -> Node | None:
        """The attention node of the branch, the last where there are several; None for an MLP."""
        return next((node for node in reversed(self.nodes) if node.op.name in _ATTENTION), None)


@dataclass(frozen=True, eq=False)
class Block:
    """Units that follow each other, from one self-attention to the next: with cross-attention and MLPs behind it."""

    units: tuple[Unit, ...]

    @property
    def start(self) -> Value:
        """The stream before the block."""
        return self.units[0].start

    @property
    def end(self) -> Value:
        """The stream behind the block."""
        return self.units[-1].end

    @property
    def states(self) -> tuple[Value, ...]:
        """The KV inputs that the block appends to."""
        return tuple(state for unit in self.units for state in unit.states)

    @property
    def module(self) -> str:
        """Where in the model the block stands: the module path that its sums share; for messages only."""
        producer = self.units[-1].total.producer
        return producer.loc.module if producer is not None else ""


@dataclass(frozen=True)
class Stack:
    """The blocks of a graph in execution order, and for sums that look residual but are not, why."""

    blocks: tuple[Block, ...] = ()
    reasons: tuple[tuple[Node, str], ...] = ()

    @property
    def units(self) -> tuple[Unit, ...]:
        """The units of all blocks in order."""
        return tuple(unit for block in self.blocks for unit in block.units)


def find_blocks(graph: Graph) -> Stack:
    """The blocks of a graph. Where there are none, `reasons` of the stack says what was missing."""
    return _Search(graph).run()


def corresponding(program: Program) -> tuple[list[dict[str, Block]], str]:
    """For every block of the model its form in each graph that holds it, and why none where graphs disagree.

    The blocks of `forward` are those of `encode`, where there is an encoder, and then those of `prefill`, which are
    those of `decode`. They must agree in the kinds of their units, too.
    """
    found = {name: find_blocks(graph).blocks for name, graph in program.graphs.items()}
    forward, encode, prefill = found.get("forward", ()), found.get("encode", ()), found.get("prefill", ())
    if "prefill" not in found:
        return [{"forward": block} for block in forward], "" if forward else "no blocks are recognised"
    rows = [{"encode": block} for block in encode]
    decode = found.get("decode", ())
    rows += [{"prefill": a, "decode": b} for a, b in zip(prefill, decode)]
    if not len(rows) == len(forward) == len(encode) + len(prefill) or len(prefill) != len(decode):
        return [], f"the graphs have {', '.join(f'{len(b)} ({name})' for name, b in found.items())} blocks"
    rows = [{"forward": block, **row} for block, row in zip(forward, rows, strict=True)]
    if any(len({tuple(unit.kind for unit in block.units) for block in row.values()}) > 1 for row in rows):
        return [], "the units of the graphs' blocks differ"
    return rows, "" if rows else "no blocks are recognised"


@dataclass
class _Sum:
    """A residual sum: the stream it continues, the other terms, and for each the nodes that depend on the stream."""

    node: Node
    start: Value
    branches: list[tuple[Value, list[Node]]]
    inside: set[Node] = field(default_factory=set)

    @property
    def attends(self) -> bool:
        return any(node.op.name in _ATTENTION for node in self.inside)


class _Search:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.index = {node: i for i, node in enumerate(graph.nodes)}
        self.reasons: list[tuple[Node, str]] = []

    def run(self) -> Stack:
        sums = [found for node in self.graph.nodes if node.op.name == "add" and (found := self._sum(node))]
        units = list(self._units(self._outermost(sums)))
        blocks = [block for chain in self._chains(units) for block in _grouped(chain)]
        return Stack(tuple(blocks), tuple(self.reasons))

    # --- residual sums ----------------------------------------------------------------------------------------------

    def _sum(self, node: Node) -> _Sum | None:
        """The residual sum that ends in this node; None for any other addition, and for a part of a larger one."""
        if self._joins_on(node):
            return None
        terms = list(self._terms(node))
        first = min(map(self._place, terms))
        tried = [self._branches(terms, start) for start in terms if self._place(start) == first]
        start, branches = max(tried, key=lambda found: sum(bool(nodes) for _, nodes in found[1]))
        inside = {inner for _, nodes in branches for inner in nodes}
        if not any(inner.op.name in _PRODUCTS for inner in inside):
            return None
        if not all(nodes for _, nodes in branches):
            self.reasons.append((node, "one of the terms of the sum does not depend on the stream"))
            return None
        return _Sum(node, start, branches, inside)

    def _branches(self, terms: Sequence[Value], start: Value) -> tuple[Value, list[tuple[Value, list[Node]]]]:
        """What is added to `start`, and the nodes of each term that depend on it."""
        at = next(i for i, term in enumerate(terms) if term is start)
        return start, [(term, self._dependent(term, start)) for i, term in enumerate(terms) if i != at]

    def _joins_on(self, node: Node) -> bool:
        """True where the sum is only read by another sum of the same shape, of which it is a part."""
        users = self.graph.users(node.output)
        if self.graph.is_output(node.output) or len(users) != 1 or not _is_sum(users[0]):
            return False
        return users[0].output.type == node.output.type

    def _terms(self, node: Node) -> Iterator[Value]:
        """What a tree of sums adds, in order; sums with a constant or of another shape are terms themselves."""
        for value in node.inputs:
            assert value is not None
            inner = value.producer
            if inner is not None and _is_sum(inner) and self._joins_on(inner):
                yield from self._terms(inner)
            else:
                yield value

    def _place(self, value: Value) -> int:
        return -1 if value.producer is None else self.index[value.producer]

    def _dependent(self, term: Value, start: Value) -> list[Node]:
        """The nodes between `start` and `term` that depend on `start`, in order; none where `term` does not."""
        floor = self._place(start)
        found: set[Node] = set()
        pending = [term.producer]
        while pending:
            node = pending.pop()
            if node is not None and node not in found and self.index[node] > floor:
                found.add(node)
                pending += [value.producer for value in node.inputs if value is not None]
        reached: set[Value] = {start}
        nodes = []
        for node in sorted(found, key=self.index.__getitem__):
            if any(value in reached for value in node.inputs):
                reached.update(node.outputs)
                nodes.append(node)
        return nodes if term in reached else []

    def _outermost(self, sums: Sequence[_Sum]) -> Iterator[_Sum]:
        """Sums that lie in no branch of another, where those that jump over attention units do not count."""
        by_node = {one.node: one for one in sums}
        jumps = set()
        for one in sums:
            inner = [by_node[node] for node in one.inside if node in by_node]
            if any(other.attends for other in inner):
                jumps.add(one.node)
                self.reasons.append((one.node, "the sum jumps over whole attention units"))
        kept = [one for one in sums if one.node not in jumps]
        covered = {node for one in kept for node in one.inside}
        return (one for one in kept if one.node not in covered)

    # --- units and blocks -------------------------------------------------------------------------------------------

    def _units(self, sums: Iterator[_Sum]) -> Iterator[Unit]:
        found = list(sums)
        normed = self._normed(found)
        for one in found:
            total = one.node.output
            end = normed.get(total, total)
            for kind in ("attention", "mlp"):
                branches = [(term, nodes) for term, nodes in one.branches if _kind(nodes) == kind]
                if branches:
                    terms = tuple(term for term, _ in branches)
                    nodes = tuple(sorted({n for _, part in branches for n in part}, key=self.index.__getitem__))
                    yield Unit(_kind(nodes), one.start, end, total, terms, nodes, _states(nodes))

    def _normed(self, sums: Sequence[_Sum]) -> dict[Value, Value]:
        """For sums of a post-norm model the norm's result. The last one is told by the sum before: its own norm may as
        well be the final norm of a pre-norm model."""
        starts = {one.start for one in sums}
        found: dict[Value, Value] = {}
        previous_normed = False
        for one in sums:
            total = one.node.output
            norm = self._only_norm(total)
            last = norm is not None and norm not in starts and total not in starts
            if norm is not None and (norm in starts or (last and previous_normed and norm.type == one.start.type)):
                found[total] = norm
            previous_normed = total in found
        return found

    def _only_norm(self, total: Value) -> Value | None:
        users = self.graph.users(total)
        if len(users) != 1 or users[0].op.name not in _NORMS or self.graph.is_output(total):
            return None
        return users[0].output

    def _chains(self, units: Sequence[Unit]) -> list[list[Unit]]:
        """Units by stream, as an encoder's and a decoder's are apart; streams in the order in which they end."""
        chains: list[list[Unit]] = []
        at: dict[Value, list[Unit]] = {}
        for unit in units:
            chain = at.get(unit.end) or at.get(_before_glue(unit.start, at))
            if chain is None:
                chain = []
                chains.append(chain)
            chain.append(unit)
            at[unit.end] = chain
        return sorted(chains, key=lambda chain: self._place(chain[-1].total))


def _is_sum(node: Node) -> bool:
    """True for an addition of two tensors of its own type, none of them a constant."""
    return node.op.name == "add" and all(
        value is not None and value.type == node.output.type and not isinstance(value, Weight | Scalar)
        for value in node.inputs
    )


def _kind(nodes: Sequence[Node]) -> Kind:
    return "attention" if any(node.op.name in _ATTENTION for node in nodes) else "mlp"


def _states(nodes: Sequence[Node]) -> tuple[Value, ...]:
    """The KV inputs of the graph that these nodes take on."""
    found: dict[Value, None] = {}
    for node in nodes:
        if node.op.name == "kv_append":
            state = node.inputs[0]
            while state is not None and state.producer is not None:
                state = next(v for v in state.producer.inputs if v is not None and isinstance(v.type, KVType))
            if state is not None:
                found[state] = None
    return tuple(found)


def _before_glue(start: Value, ends: dict[Value, list[Unit]]) -> Value:
    """The end of the unit whose result `start` is, reshaped or with fewer tokens; `start` itself for the first."""
    value = start
    while value not in ends and value.producer is not None and value.producer.op.name in _GLUE:
        operand = value.producer.inputs[0]
        assert operand is not None
        value = operand
    return value


def _begins(unit: Unit, previous: Unit) -> bool:
    """True for a unit that begins a block; attention to an encoder's tokens behind self-attention does not."""
    node = unit.attention
    if node is None:
        return False
    keys = node.inputs[1]
    return previous.kind == "mlp" or (keys is not None and keys.producer in unit.nodes)


def _grouped(units: Sequence[Unit]) -> Iterator[Block]:
    """A block ends before attention of another sum that follows an MLP, or that is over the stream itself."""
    current: list[Unit] = []
    for unit in units:
        if current and unit.total is not current[-1].total and _begins(unit, current[-1]):
            yield Block(tuple(current))
            current = []
        current.append(unit)
    if current:
        yield Block(tuple(current))
