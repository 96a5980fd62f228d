"""Which tokens to merge, in four kernels: unit keys, the best partner of each odd token, who goes, and the lists.

units      keys [B, G, S, D] -> unit [B, S, G * D] of length 1 over all heads
partners   the even token whose key is most like an odd one's, and the odd one's score: tiles of a product
ranks      1 for the odd tokens with the `count` best scores
lists      index_from, index_to, slots
"""

from __future__ import annotations

from irx.backends.regions.lowered import Call, Refusal, Temporary
from irx.backends.regions.matching import Match
from irx.backends.triton.templates.attention_arguments import Arguments, Launch, times
from irx.backends.triton.templates.attention_storage import width_of
from irx.backends.triton.templates.token_elements import Elements, pointers
from irx.backends.triton.writer import Writer, loaded
from irx.ir.graph import Node

TILE = 32  # tokens of a program that are counted, and tokens they are compared with at once
ODD, EVEN, CHANNELS = 16, 32, 32  # of a tile of the product
WIDEST = 1 << 14  # elements of a key over all heads
_TINY = 1e-12
_WORST = -2.0  # below every cosine
_NOBODY = -4.0
_PADDING = 3e38  # the score of a token of size 0, which goes first
_PARTS = {"unit": "f32", "score": "f32", "into_of": "i64", "goes": "i32"}


def match_calls(node: Node) -> tuple[Call, ...]:
    """`match_tokens`. Raises Refusal for heads of no certain number, and for keys that are too wide."""
    m = _Match.of(node)
    if m.width > WIDEST:
        raise Refusal(f"match_tokens of keys {m.keys.type}")
    return m.units(), m.partners(), m.ranks(), m.lists()


class _Match(Match):
    """The kernels of the op."""

    def begin(self, *parts: str) -> tuple[Arguments, str, str]:
        """The parameters of a kernel on these temporaries, with the texts of the batch and the length."""
        arguments = Arguments()
        for name in parts:
            each = {"unit": 4 * self.width, "into_of": 8}.get(name, 4)
            arguments.pointer(name, _PARTS[name], Temporary(name, self.tokens * each))
        return arguments, arguments.size(self.keys.shape[0]), arguments.size(self.keys.shape[2])

    def units(self) -> Call:
        """Keys of length 1, all heads of a token beside each other; a token for each program."""
        arguments, batch, length = self.begin("unit")
        pointers(arguments, keys=self.keys)
        w, block = Writer(), width_of(self.width)
        w("token = tl.program_id(0).to(tl.int64)")
        w(f"c = tl.arange(0, {block})")
        w(f"head = token // {length} * {self.heads} + c // {self.channels}")
        mask = f"c < {self.width}"
        place = f"(head * {length} + token % {length}) * {self.channels} + c % {self.channels}"
        key = w.load("keys", place, self.keys.dtype, mask)
        norm = w.let(f"tl.sqrt_rn(tl.sum({key} * {key}, 0))", "norm")
        w(f"tl.store(unit + token * {self.width} + c, {key} / tl.maximum({norm}, {_TINY}), mask={mask})")
        return arguments.call("match_units", w, Launch((times(batch, length),), 4), "keys of length 1")

    def partners(self) -> Call:
        """The best partner of each odd token, and how much it is worth merging."""
        arguments, batch, length = self.begin("unit", "score", "into_of")
        pointers(arguments, sizes=self.sizes)
        w = Writer()
        w("row = tl.program_id(0).to(tl.int64) * " + length)
        w(f"odd = {self.odd} + 2 * (tl.program_id(1) * {ODD} + tl.arange(0, {ODD}))")
        w(f"there = odd < {length}")
        w(f"best = tl.full(({ODD},), -3.0, tl.float32)")
        w(f"into = tl.full(({ODD},), {self.even}, tl.int32)")
        with w.block(f"for start in range({self.even}, {length}, {2 * EVEN}):"):
            w(f"even = start + 2 * tl.arange(0, {EVEN})")
            w(f"known = even < {length}")
            self._likeness(w)
            size = w.load("sizes", "row + even", self.sizes.dtype, "known")
            w(f"like = tl.where(({size} > 0)[None, :], like, {_WORST})")
            w(f"like = tl.where(known[None, :], like, {_NOBODY})")
            w("most = tl.max(like, 1)")
            w(f"first = tl.min(tl.where(like == most[:, None], even[None, :], {1 << 30}), 1)")
            w("into = tl.where(most > best, first, into)")
            w("best = tl.maximum(best, most)")
        if self.received is not None:
            pointers(arguments, received=self.received)
            w(f"best -= {self.alpha!r} * {w.load('received', 'row + odd', self.received.dtype, 'there')}")
        own = w.load("sizes", "row + odd", self.sizes.dtype, "there")
        w(f"tl.store(score + row + odd, tl.where({own} > 0, best, {_PADDING}), mask=there)")
        w("tl.store(into_of + row + odd, into.to(tl.int64), mask=there)")
        launch = Launch((batch, f"ceil({length}, {2 * ODD})"), 4)
        return arguments.call("match_partners", w, launch, "the even token that is most like an odd one")

    def _likeness(self, w: Writer) -> None:
        """Cosines of the tile's odd and even tokens."""
        w(f"like = tl.zeros(({ODD}, {EVEN}), tl.float32)")
        with w.block(f"for c in range(0, {self.width}, {CHANNELS}):"):
            w(f"k = c + tl.arange(0, {CHANNELS})")
            rows = (f"(row + odd)[:, None] * {self.width} + k[None, :]", "there[:, None]", "(k < {})[None, :]")
            columns = (f"(row + even)[None, :] * {self.width} + k[:, None]", "known[None, :]", "(k < {})[:, None]")
            left, right = (
                w.load("unit", place, "f32", f"{tokens} & {inside.format(self.width)}")
                for place, tokens, inside in (rows, columns)
            )
            w(f'like = tl.dot({left}, {right}, like, input_precision="ieee")')

    def ranks(self) -> Call:
        """Which odd tokens go: fewer than `count` are before them."""
        arguments, batch, length = self.begin("score", "goes")
        count = arguments.size(self.node.outputs[0].shape[1])
        kernel = Elements(times(batch, length), arguments, TILE)
        w = kernel.w
        w(f"t = i % {length}")
        w("start = (i - t)[:, None]")
        w(f"may = mask & (t >= {self.odd}) & ((t - {self.odd}) % 2 == 0)")
        w(f"own = {loaded('score', 'i', 'f32', 'may')}[:, None]")
        w(f"before = tl.zeros(({TILE},), tl.int32)")
        with w.block(f"for j in range({self.odd}, {length}, {2 * TILE}):"):
            w(f"other = j + 2 * tl.arange(0, {TILE})[None, :]")
            w(f"inside = may[:, None] & (other < {length})")
            score = w.load("score", "start + other", "f32", "inside")
            w(f"ahead = ({score} > own) | (({score} == own) & (other < t[:, None]))")
            w("before += tl.sum((ahead & inside).to(tl.int32), 1)")
        w(f"tl.store(goes + i, (may & (before < {count})).to(tl.int32), mask=mask)")
        return kernel.call("match_ranks", "which tokens go")

    def lists(self) -> Call:
        """What goes into what, and where every token is found afterwards."""
        arguments, batch, length = self.begin("into_of", "goes")
        gone, into, slots = self.node.outputs
        pointers(arguments, gone=gone, into=into, slots=slots)
        count = arguments.size(gone.shape[1])
        kernel = Elements(times(batch, length), arguments, TILE)
        w = kernel.w
        w(f"t = i % {length}")
        w("start = (i - t)[:, None]")
        w("own = tl.load(goes + i, mask=mask, other=0) != 0")
        w("target = tl.load(into_of + i, mask=own, other=0)")
        w(f"before = tl.zeros(({TILE},), tl.int64)")
        w(f"there = tl.zeros(({TILE},), tl.int64)")
        with w.block(f"for j in range(0, {length}, {TILE}):"):
            w(f"other = j + tl.arange(0, {TILE})[None, :]")
            w(f"left = tl.load(goes + start + other, mask=mask[:, None] & (other < {length}), other=0)")
            w("before += tl.sum(tl.where(other < t[:, None], left, 0), 1)")
            w("there += tl.sum(tl.where(other < target[:, None], left, 0), 1)")
        w("tl.store(slots + i, tl.where(own, target - there, t - before), mask=mask)")
        w(f"listed = own & (before < {count})")  # more would go where scores are nan
        w(f"place = i // {length} * {count} + before")
        w("tl.store(gone + place, t, mask=listed)")
        w("tl.store(into + place, target, mask=listed)")
        return kernel.call("match_lists", "what is merged into what")
