"""What a matrix-matrix kernel is made for: the region, its layouts, how x meets the weights, and the register tile.

Ways, by weight format, precision of x and instruction set:

    floats   x as float32; weights that are not float32 are widened once for each tile: any format, any processor
    pairs    bfloat16 x and weights, two columns an instruction (AVX512-BF16)
    halves   packed weights as bfloat16 codes, which are exact, bfloat16 x (AVX512-BF16)
    words    packed weights as 16-bit codes, x as 16-bit codes with a scale for each group (VNNI)
    bytes    packed weights as 8-bit codes, x as 8-bit codes with a scale for each group: a8 (VNNI)
    split    weights, and x where it is float32, as sums of two bfloat16 numbers, two or three products of pairs: a
             schedule may ask for it in place of floats, words and halves, and does where AMX multiplies pairs at many
             times the rate of anything else
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from irx.backends.layouts.coding import Coding
from irx.backends.regions.linear_region import LinearRegion
from irx.backends.regions.lowered import Choices
from irx.backends.tvm import amx
from irx.backends.tvm.layouts.tiles import Tiles
from irx.backends.tvm.templates.linear_shape import LARGEST_GROUP, ProductShape, groups_nest
from irx.backends.tvm.writer import LANES
from irx.target import Device
from irx.tuning import Choice

MOST_IN_BLOCK = 16
"""Most rows in a register tile. A kernel needs at least as many rows as its register tile has."""
STRIPE_BYTES = 512 << 10
"""How much of x is met by one tile after the other before the next rows follow: half of a usual second-level cache."""
PAGE = 4096
MATRIX_DEPTH = 32
"""Columns of x in a matrix of 16 rows of bfloat16 pairs."""
GROUPED = ("halves", "words", "bytes")
WORD = {"floats": 1, "pairs": 2, "halves": 2, "words": 2, "bytes": 4, "split": 2}
"""Elements of x in 32 bits."""


@dataclass(frozen=True)
class Shape(ProductShape):
    """One kernel: register tiles of `block` rows and `vectors` of 16 columns; `unroll` words of x in a loop's body."""

    block: int
    stripe: int
    """Blocks of rows that meet one tile before the next tile's turn."""
    prefetches: bool = False
    """Whether to ask for the next unit's weights while one is at work."""
    is_split: bool = False
    """Whether to split numbers in place of products of float32 or of codes."""

    @property
    def way(self) -> str:
        """How x meets the weights."""
        plain = way(self.region, self.layouts, self.device)
        return "split" if self.is_split and can_split(self.region, self.layouts, self.device) else plain

    @property
    def uses_matrices(self) -> bool:
        """True where AMX multiplies."""
        return self.way in ("pairs", "split") and has_matrices(self.device)

    @property
    def codings(self) -> tuple[Coding, ...]:
        """The codings of the packed weights."""
        return tuple(layout.coding for layout in self.layouts if layout.coding is not None)

    @property
    def words(self) -> int:
        """Words of 32 bits in a row of x, of each of its parts where it is split."""
        if self.uses_matrices:
            return -(-self.region.k // MATRIX_DEPTH) * LANES
        return -(-self.region.k // WORD[self.way])

    @property
    def x_parts(self) -> int:
        """Of how many numbers an element of x is the sum."""
        return 2 if self.way == "split" and self.region.activations == "f32" else 1

    @property
    def weight_parts(self) -> int:
        """Of how many numbers an element of the weights is the sum."""
        return 2 if self.way == "split" else 1

    @property
    def stride(self) -> int:
        """Words from one row of x to the next; in a copy never whole pages, whose rows would share cache sets."""
        if self.is_direct:
            return self.words
        whole = -(-self.words * self.x_parts // LANES) * LANES
        return whole + LANES if whole * 4 % (PAGE // 2) == 0 else whole

    @property
    def group(self) -> int:
        """Elements that are summed before scales are applied; 0 where there are none to apply."""
        if self.way in ("floats", "pairs", "split"):
            return 0
        smallest = min(coding.group for coding in self.codings)
        return smallest if self.way == "halves" else min(smallest, self.x_group)

    @property
    def x_group(self) -> int:
        """Elements of x that share a scale; 0 where x has none."""
        if self.region.activations == "a8":
            return self.region.group
        return min(*(coding.group for coding in self.codings), LARGEST_GROUP) if self.way == "words" else 0

    @property
    def has_scales(self) -> bool:
        """True where x is codes with scales."""
        return self.way in ("words", "bytes")

    @property
    def has_code_sums(self) -> bool:
        """True where the kernel needs the sums of the codes of x, because those of the weights are not centred."""
        return self.way == "bytes" and any(coding.zero for coding in self.codings)

    @property
    def has_sums(self) -> bool:
        """True where the kernel needs the sums of x in every group, for the minima of the weights."""
        return bool(self.group) and any(coding.has_minimum for coding in self.codings)

    @property
    def is_direct(self) -> bool:
        """True where the kernel reads x as it lies in memory."""
        r = self.region
        if r.norm is not None or self.has_scales or self.has_sums or self.x_parts > 1:
            return False
        if self.way == "floats":
            return r.x.dtype == "f32" and r.activations == "f32" and r.k * 4 % PAGE != 0
        return r.x.dtype == "bf16" and r.k % (MATRIX_DEPTH if self.uses_matrices else 2) == 0

    def is_prepared(self, product: int) -> bool:
        """True where each thread converts a tile of the weights before it multiplies."""
        return self.layouts[product].format != {"floats": "f32", "pairs": "bf16"}.get(self.way)

    @property
    def tile_words(self) -> int:
        """Words in a converted tile of one unit."""
        return self.words * self.columns * self.weight_parts

    def groups(self, product: int) -> int:
        """Groups of scales in a row of a packed weight."""
        coding = self.layouts[product].coding
        return self.region.k // coding.group if coding is not None else 0


def way(region: LinearRegion, layouts: tuple[Tiles, ...], device: Device) -> str:
    """`floats`, `pairs`, `halves`, `words` or `bytes`."""
    has = device.features.issuperset
    bf16 = region.activations == "bf16" and has(("avx512_bf16", "avx512bw"))
    if all(layout.format == "bf16" for layout in layouts):
        return "pairs" if bf16 else "floats"
    if any(layout.coding is None for layout in layouts):
        return "floats"
    if bf16:
        return "halves"
    if not has(("avx512_vnni", "avx512bw")):
        return "floats"
    if region.activations != "a8":
        return "words"
    return "bytes" if groups_nest(region.group, layouts) else "floats"


def has_matrices(device: Device) -> bool:
    """True on a processor that multiplies matrices of bfloat16 pairs (AMX)."""
    return device.features.issuperset(("amx_tile", "amx_bf16", "avx512_bf16", "avx512bw"))


def can_split(region: LinearRegion, layouts: tuple[Tiles, ...], device: Device) -> bool:
    """True where split numbers may stand in for what the region has: float32, 16-bit codes, packed weights in bf16."""
    plain = way(region, layouts, device)
    fits = plain == "halves" or (region.activations == "f32" and plain in ("floats", "words"))
    return fits and device.features.issuperset(("avx512_bf16", "avx512bw"))


def shape_for(region: LinearRegion, layouts: tuple[Tiles, ...], choices: Choices, fewest: int) -> Shape:
    """The kernel's shape for `fewest` rows and more: knobs from the schedule, else what suits the registers.

    A block is never of more than `fewest` rows, because the last one must lie within the rows there are.
    """
    layout, device, plain = layouts[0], choices.device, way(region, layouts, choices.device)
    wide, matrices = "avx512f" in device.features, has_matrices(device) and fewest > LANES
    vectors = min(layout.tile // LANES, 2 if wide else 1)
    in_groups = plain in GROUPED  # whose sums take registers beside the totals
    block = min((8 if in_groups else 10 if vectors == 2 else 14) if wide else 6, fewest - 1)
    splits = can_split(region, layouts, device)
    if matrices and (plain == "pairs" or splits):
        block = amx.ROWS
    stripe = max(1, STRIPE_BYTES // (block * region.k * 4 // WORD[plain]))
    defaults: dict[str, Choice] = {
        "block": block,
        "vectors": vectors,
        "unroll": 4,
        "stripe": stripe,
        "prefetch": int(not matrices),
        **({"split": int(matrices)} if splits else {}),
    }
    bucket = f"{layout.format}/{region.activations} {region.n}x{region.k} rows{fewest}"
    knobs = choices.schedule("gemm", bucket, defaults)
    block, vectors, unroll, stripe, prefetch = (
        int(knobs[name]) for name in ("block", "vectors", "unroll", "stripe", "prefetch")
    )
    block, vectors = min(block, MOST_IN_BLOCK, fewest), min(vectors, layout.tile // LANES)
    shape = Shape(region, layouts, device, vectors, unroll, block, stripe, bool(prefetch), bool(knobs.get("split")))
    if not shape.uses_matrices:
        return shape
    return replace(shape, block=amx.ROWS, vectors=min(vectors, amx.MOST_VECTORS))
