"""Packed weights times planes of bytes: integer sums for each group (VNNI)."""

from __future__ import annotations

from irx.backends.tvm.templates.instructions import dot_bytes
from irx.backends.tvm.templates.matvec_grouped import Grouped
from irx.backends.tvm.writer import splat


class Planes(Grouped):
    """Sums of codes times one or two planes of signed bytes."""

    def first_sums(self, row: int) -> list[str]:
        """Integer sums, that of the lowest plane with the codes' zero already taken off."""
        first = [splat("T.int32(0)")] * self.shape.planes
        if self.coding.zero:
            first[-1] = self.part(row, "sums", "g", "sw")
        return [self.w.register(value, dtype="int32") for value in first]

    def parts(self, entry: str, vector: str) -> list[str]:
        """Quads of bytes."""
        return self.quads(self.word(entry, vector), entry, vector)

    def dot(self, total: str, weights: str, x: str) -> str:
        """Four bytes of each lane."""
        return dot_bytes(total, weights, x)

    def finish(self, sums: list[list[str]], vector: str) -> None:
        """Both planes as one number, times the scales of x and of the weights."""
        scale = self.w.register(self.scale("scales", "super_scales", vector))
        minimum = self.minimum(vector)
        ratio = self.shape.x_group // self.step
        for row, planes in enumerate(sums):
            whole = f"T.shift_left({planes[0]}, {splat('8')}) + {planes[1]}" if len(planes) == 2 else planes[0]
            x_scale = self.part(row, "scales", f"g // {ratio}" if ratio > 1 else "g", "sf")
            total = self.total(row, vector)
            self.w(f'{total} = {total} + T.cast({whole}, "float32x16") * {x_scale} * {scale}')
            if minimum:
                self.w(f"{total} = {total} + {self.part(row, 'sums', 'g', 'sf')} * {minimum}")
