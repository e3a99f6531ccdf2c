"""Sums of rows by weights, for reads by single queries, where each number that is read is used once.

Written for LLVM like the tiles of `tile`: loops over numbers would keep the sum in memory, and then it takes longer to
write it and read it back than rows take to come from the caches.
"""

from functools import reduce

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mosaic_cli.core.kernels.compiled import inner
from mosaic_cli.core.kernels.prefetch import LINE, prefetch
from mosaic_cli.core.kernels.processor import wide
from mosaic_cli.core.kernels.tile import ADDRESS, FEW, FLOAT, in_all_lanes, multiply_and_add, pointer, repeat

AHEAD = 4096  # bytes that are asked for before they are needed
SUMS = 8  # registers of sums, for additions take four times as long as they keep others waiting
WIDEST, WIDE, NARROW = 256 if wide() else 64, 64, 32  # columns of a sum in registers


def _summed(columns: int):
    """total += weights rows for so many columns, by addresses, the bytes from one row to the next and how many rows
    there are, a multiple of SUMS; `like` is an array of the rows' kind.

    A loop over as many rows at a time as have a register each for their sums, which are added up at its end.
    """
    lanes = FEW.lanes
    places, together = range(0, columns, lanes), max(1, SUMS * lanes // columns)

    def codegen(context, builder, signature, arguments):
        weights, rows, stride, count, total, _ = arguments
        kind = signature.args[-1].dtype
        number, floats = context.get_value_type(kind), ir.VectorType(FLOAT, lanes)
        numbers, size = ir.VectorType(number, lanes), context.get_abi_sizeof(number)

        def add_rows(begin, sums):
            last = []
            for step in range(together):
                row = builder.add(begin, ADDRESS(step))
                there = builder.add(rows, builder.mul(row, stride))
                for byte in range(0, columns * size, LINE):
                    prefetch(builder, builder.add(there, ADDRESS(AHEAD + byte)), once=True)
                weight = builder.load(pointer(builder, FLOAT, weights, (ADDRESS(4), row)), align=4)
                weight = in_all_lanes(builder, weight, lanes)
                for lane in places:
                    place = pointer(builder, numbers, there, (ADDRESS(size), ADDRESS(lane)))
                    some = builder.load(place, align=size)
                    some = some if kind == types.float32 else builder.sitofp(some, floats)
                    last.append(multiply_and_add(builder, some, weight, sums[len(last)]))
            return last

        sums_at = [pointer(builder, floats, total, (ADDRESS(4), ADDRESS(lane))) for lane in places]
        first = [builder.load(place, align=4) for place in sums_at]
        first += [floats([0.0] * lanes)] * (len(places) * (together - 1))
        last = repeat(builder, count, together, first, add_rows)
        for index, place in enumerate(sums_at):
            builder.store(reduce(builder.fadd, last[index :: len(places)]), place, align=4)
        return context.get_dummy_value()

    @intrinsic
    def function(typing, weights, rows, stride, count, total, like):
        return types.void(*[types.int64] * 5, like), codegen

    return function


_widest, _wide, _narrow = _summed(WIDEST), _summed(WIDE), _summed(NARROW)


@inner
def add_weighted(weights, rows, total):
    """total (W,) += the sum of rows (n, W), float32 or integers of 16 bits, by their weights (n,); a row's numbers lie
    side by side."""
    W, even = rows.shape[1], len(rows) - len(rows) % SUMS
    column = 0
    if even:
        while W - column >= NARROW:
            left, place = rows[:, column:].ctypes.data, total[column:].ctypes.data
            if W - column >= WIDEST:
                _widest(weights.ctypes.data, left, rows.strides[0], even, place, rows)
                column += WIDEST
            elif W - column >= WIDE:
                _wide(weights.ctypes.data, left, rows.strides[0], even, place, rows)
                column += WIDE
            else:
                _narrow(weights.ctypes.data, left, rows.strides[0], even, place, rows)
                column += NARROW
    for i in range(even if column == W else 0, len(rows)):  # those of which numbers are left
        for d in range(column if i < even else 0, W):
            total[d] += weights[i] * rows[i, d]
