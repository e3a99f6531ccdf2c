"""Products of matrices of bfloat16 inside compiled loops, summed in float32: what torch does not offer on a CPU.

One instruction of x86 processors, `vdpbf16ps`, multiplies 16 times two neighbours in bfloat16 by two others and adds
the products to 16 sums in float32. No loop is compiled to it, so LLVM, Numba's compiler, is told here. The sums of
8 rows and 32 columns stay in registers.

A matrix product A B is made of A's rows, as they lie in memory, and of B `down` its columns: two rows of B interleaved,
so that two neighbours are one number of 32 bits in both. Such pairs `turned` are those of the transposed matrix: down
its columns what lay along the rows, and the reverse.
"""

from functools import cache

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.extending import intrinsic

from mosaic_cli.core.kernels.compiled import inner

ROWS, COLUMNS = 8, 32  # of a tile
LANES = 16  # sums in a register
INT, FLOAT, ADDRESS = ir.IntType(32), ir.FloatType(), ir.IntType(64)
INTS, FLOATS = ir.VectorType(INT, LANES), ir.VectorType(FLOAT, LANES)

binding.initialize_native_asmparser()  # LLVM needs it where an instruction is named


@cache
def available() -> bool:
    """Whether this processor has the instruction: AMD's have since Zen 4, Intel's for servers since Cooper Lake."""
    return binding.get_host_cpu_features().get("avx512bf16", False)


@inner
def matrix(run, start, step, count, width):
    """Rows of 16 bits (count, width), of which row n lies at start + n step of a run of numbers, with zeros up to
    multiples of 32, which tiles cover."""
    rows = np.zeros((count + -count % COLUMNS, width + -width % COLUMNS), np.uint16)
    for n in range(count):
        row, given = rows[n], run[start + n * step : start + n * step + width]
        for d in range(len(given)):
            row[d] = given[d]
    return rows


@inner
def down(rows):
    """(N, D) of 16 bits -> (N / 2, D) of 32: two neighbours of a column each."""
    packed = np.empty((len(rows) // 2, rows.shape[1]), np.uint32)
    for pair in range(len(packed)):
        interleave(rows[2 * pair], rows[2 * pair + 1], packed[pair])
    return packed


@inner
def interleave(even, odd, both):
    """Fill a row of 32 bits with those of two rows of 16, from their beginnings on."""
    for d in range(len(both)):
        both[d] = np.uint32(even[d]) | np.uint32(np.uint32(odd[d]) << np.uint32(16))


@inner
def turned(pairs):
    """The transposed (D, N), in memory as it is read, of pairs (N, D) of 32 bits; N is a multiple of 16."""
    N, D = pairs.shape
    columns = np.empty((D, N), np.uint32)
    for n in range(0, N, LANES):
        for d in range(D):
            for lane in range(LANES):
                columns[d, n + lane] = pairs[n + lane, d]
    return columns


def _codegen(add: bool):
    """Writes a tile for LLVM: a loop over the pairs, with 16 sums that are carried from one to the next."""

    def codegen(context, builder, signature, arguments):
        left, left_stride, right, right_stride, product, product_stride, pairs = arguments
        places = [(row, lane) for row in range(ROWS) for lane in range(0, COLUMNS, LANES)]

        def at(kind, start, *steps):
            for stride, count in steps:
                start = builder.add(start, builder.mul(stride, count))
            return builder.inttoptr(start, kind.as_pointer())

        def sums_at(row, lane):
            return at(FLOATS, product, (product_stride, ADDRESS(row)), (ADDRESS(4), ADDRESS(lane)))

        if add:
            first = [builder.load(sums_at(*place), align=4) for place in places]
        else:
            first = [FLOATS([0.0] * LANES)] * len(places)
        before, loop, after = builder.block, *(builder.append_basic_block() for _ in range(2))
        builder.branch(loop)
        builder.position_at_end(loop)
        pair, sums = builder.phi(ADDRESS), [builder.phi(FLOATS) for _ in places]
        columns = {
            lane: builder.load(at(INTS, right, (right_stride, pair), (ADDRESS(4), ADDRESS(lane))), align=4)
            for lane in range(0, COLUMNS, LANES)
        }
        nothing, first_lane = INTS(ir.Undefined), INTS([0] * LANES)
        spread = []  # a row's two neighbours, in all lanes
        for row in range(ROWS):
            two = builder.load(at(INT, left, (left_stride, ADDRESS(row)), (ADDRESS(4), pair)), align=4)
            spread.append(builder.shuffle_vector(builder.insert_element(nothing, two, INT(0)), nothing, first_lane))
        multiply_add = ir.InlineAsm(ir.FunctionType(FLOATS, [FLOATS, INTS, INTS]), "vdpbf16ps $3, $2, $0", "=v,0,v,v")
        last = [
            builder.call(multiply_add, [total, columns[lane], spread[row]])
            for total, (row, lane) in zip(sums, places, strict=True)
        ]
        following = builder.add(pair, ADDRESS(1))
        carried = zip([pair, *sums], [ADDRESS(0), *first], [following, *last], strict=True)
        for phi, start, value in carried:
            phi.add_incoming(start, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, after)
        builder.position_at_end(after)
        for total, place in zip(last, places, strict=True):
            builder.store(total, sums_at(*place), align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


@intrinsic
def _tile(typing, left, left_stride, right, right_stride, product, product_stride, pairs):
    """8 x 32 numbers of a product: addresses, the bytes from one row to the next, and the pairs that are summed."""
    return _codegen(add=False)


@intrinsic
def _tile_added(typing, left, left_stride, right, right_stride, product, product_stride, pairs):
    """The same, added to what is there."""
    return _codegen(add=True)


@inner
def multiply(left, right, product):
    """product (8, N) = left right, for the first 8 rows of left (., K), K > 0 pairs, and right (K or more, N), which is
    a matrix `down` its columns; N is a multiple of 32."""
    for column in range(0, product.shape[1], COLUMNS):
        _tile(
            left.ctypes.data,
            left.strides[0],
            right[:, column:].ctypes.data,
            right.strides[0],
            product[:, column:].ctypes.data,
            product.strides[0],
            left.shape[1],
        )


@inner
def multiply_add(left, right, product):
    """product (M, N) += left right, for rows (M, K) and right (K or more, N); M is a multiple of 8, N of 32."""
    for column in range(0, product.shape[1], COLUMNS):
        for row in range(0, len(product), ROWS):
            _tile_added(
                left[row:].ctypes.data,
                left.strides[0],
                right[:, column:].ctypes.data,
                right.strides[0],
                product[row:, column:].ctypes.data,
                product.strides[0],
                left.shape[1],
            )
