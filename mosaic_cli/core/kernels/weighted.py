"""Sums of rows by weights, for reads by single queries, where each number that is read is used once.

Written for LLVM like the tiles of `tile`: loops over numbers would keep the sum in memory, and then it takes longer to
write it and read it back than rows take to come from the caches.
"""

from functools import reduce

from llvmlite import ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic

from mosaic_cli.core.kernels.compiled import inner
from mosaic_cli.core.kernels.prefetch import LINE, prefetch
from mosaic_cli.core.kernels.tile import ADDRESS, FEW, FLOAT, INT, wide

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
    floats, everywhere = ir.VectorType(FLOAT, lanes), ir.VectorType(INT, lanes)([0] * lanes)

    def codegen(context, builder, signature, arguments):
        weights, rows, stride, count, total, _ = arguments
        kind = signature.args[-1].dtype
        number = context.get_value_type(kind)
        size = context.get_abi_sizeof(number)
        fuse = get_or_insert_function(
            builder.module, ir.FunctionType(floats, [floats] * 3), f"llvm.fmuladd.v{lanes}f32"
        )

        def at(kind, start, bytes_on):
            return builder.inttoptr(builder.add(start, bytes_on), kind.as_pointer())

        def weight_of(row):
            one = builder.load(at(FLOAT, weights, builder.mul(row, ADDRESS(4))), align=4)
            first = builder.insert_element(floats(ir.Undefined), one, INT(0))
            return builder.shuffle_vector(first, floats(ir.Undefined), everywhere)

        def numbers(address, lane):
            vector = ir.VectorType(number, lanes)
            there = builder.load(at(vector, address, ADDRESS(lane * size)), align=size)
            return there if kind == types.float32 else builder.sitofp(there, floats)

        sums_at = [at(floats, total, ADDRESS(4 * lane)) for lane in places]
        first = [builder.load(place, align=4) for place in sums_at]
        first += [floats([0.0] * lanes)] * (len(places) * (together - 1))
        before, loop, after = builder.block, *(builder.append_basic_block() for _ in range(2))
        builder.branch(loop)
        builder.position_at_end(loop)
        row, address, *sums = [builder.phi(ADDRESS) for _ in range(2)] + [builder.phi(floats) for _ in first]
        following, behind, last = row, address, []
        for _ in range(together):
            for byte in range(0, columns * size, LINE):
                prefetch(builder, builder.add(behind, ADDRESS(AHEAD + byte)), once=True)
            weight = weight_of(following)
            for lane in places:
                last.append(builder.call(fuse, [numbers(behind, lane), weight, sums[len(last)]]))
            following, behind = builder.add(following, ADDRESS(1)), builder.add(behind, stride)
        carried = zip([row, address, *sums], [ADDRESS(0), rows, *first], [following, behind, *last], strict=True)
        for phi, start, value in carried:
            phi.add_incoming(start, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
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
    for i in range(even):
        for d in range(column, W):
            total[d] += weights[i] * rows[i, d]
    for i in range(even, len(rows)):
        for d in range(W):
            total[d] += weights[i] * rows[i, d]
