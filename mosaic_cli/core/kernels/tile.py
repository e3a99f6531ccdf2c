"""Products of matrices inside compiled loops, summed in float32: of bfloat16, which torch does not offer on a CPU with
such sums, and of float32, so that a causal read multiplies no more than it needs.

A loop over numbers is not compiled into what a processor does best, so LLVM, Numba's compiler, is told here: the sums
of a tile of the product stay in registers. For bfloat16, one instruction of x86 processors, `vdpbf16ps`, multiplies 16
times two neighbours by two others and adds the products to 16 sums in float32. For float32 it is the usual multiply and
add of eight numbers at a time.

What is multiplied are `words` of 32 bits: two neighbours in bfloat16, which loops know as the 16 bits that each is, or
one float32. A product A B is made of A's rows, as they lie in memory, and of B `down` its columns: in bfloat16 two rows
of B interleaved, so that two neighbours are a word in both; in float32 B as it is. Words `turned` are those of the
transposed matrix: down its columns what lay along the rows, and the reverse.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core.cgutils import get_or_insert_function
from numba.extending import intrinsic, overload

from mosaic_cli.core.kernels.compiled import inner
from mosaic_cli.core.kernels.halves import narrow
from mosaic_cli.core.kernels.prefetch import request_once
from mosaic_cli.core.kernels.processor import has, wide

ROWS, COLUMNS = 8, 32  # of a product, which may have a multiple of them
AHEAD = 32  # rows that are asked for before they are copied
LINE = 16  # words in a line of the cache
INT, FLOAT, ADDRESS = ir.IntType(32), ir.FloatType(), ir.IntType(64)

binding.initialize_native_asmparser()  # LLVM needs it where an instruction is named


class Tile(NamedTuple):
    """What fits the registers: rows and columns, and the lanes of a register; what words are, and what adds them."""

    rows: int
    columns: int
    lanes: int
    word: ir.Type
    halves: bool


TILES = {
    types.uint32: Tile(8, 32, 16, INT, True),
    types.float32: Tile(8, 32, 16, FLOAT, False) if wide() else Tile(4, 16, 8, FLOAT, False),
}
FEW = Tile(8, 16, 16, FLOAT, False) if wide() else TILES[types.float32]
FEW_ROWS, FEW_COLUMNS = FEW.rows, FEW.columns


@cache
def available(halves: bool) -> bool:
    """Whether this processor is quick at products of bfloat16 (`halves`): AMD's have an instruction for them since Zen
    4, Intel's for servers since Cooper Lake. Or at those of float32, as most since 2013 are, with AVX2. Products
    come out the same everywhere."""
    return has("avx512bf16") if halves else has("avx2", "fma")


def words(rows):
    """Rows (N, W) of numbers as words, as they lie in memory."""


def in_words(count, rows):
    """How many words so many numbers of such rows are."""


def down(rows):
    """(N, W) numbers -> words (N / 2, W) of bfloat16, two neighbours of a column each; of float32 (N, W)."""


def to_lay_down(places, rows, first, start):
    """Where to write eight rows of numbers that are to be `lay_down` as rows from `first` and columns from `start` on:
    two matrices, a row and a column. In bfloat16 the matrices are `rows` (2, 8, .), in float32 those of `places`."""


def lay_down(rows, place, first, start, stop):
    """Write eight rows of numbers `down` into words, as rows from `first` on would be, and there from column `start` to
    `stop`. In float32 they are there."""


@overload(words)
def _words(rows):
    return (lambda rows: rows.view(np.uint32)) if rows.dtype == types.uint16 else (lambda rows: rows)


@overload(in_words)
def _in_words(count, rows):
    return (lambda count, rows: count // 2) if rows.dtype == types.uint16 else (lambda count, rows: count)


@overload(down)
def _down(rows):
    return (lambda rows: interleaved(rows)) if rows.dtype == types.uint16 else (lambda rows: rows)


@overload(to_lay_down)
def _to_lay_down(places, rows, first, start):
    if rows.dtype == types.uint16:
        return lambda places, rows, first, start: (rows[0], rows[1], 0, 0)
    return lambda places, rows, first, start: (places[0], places[1], first, start)


@overload(lay_down)
def _lay_down(rows, place, first, start, stop):
    if rows.dtype != types.uint16:
        return lambda rows, place, first, start, stop: None

    def interleaved(rows, place, first, start, stop):
        for row in range(0, ROWS, 2):
            interleave(rows[row], rows[row + 1], place[(first + row) // 2, start:stop])

    return interleaved


@inner
def matrix(run, start, step, count, width):
    """Rows of numbers (count, width), of which row n lies at start + n step of a run of numbers, with zeros up to
    multiples of 32, which tiles cover."""
    rows = np.zeros((count + -count % COLUMNS, width + -width % COLUMNS), run.dtype)
    for n in range(count):
        row = run[start + n * step : start + n * step + width]
        request_once(row, AHEAD * row.itemsize * step, row.nbytes)
        copy(row, rows[n])
    return rows


@inner
def copy(row, place):
    """Fill the beginning of a place with a row."""
    for d in range(len(row)):
        place[d] = row[d]


@inner
def interleaved(rows):
    """(N, W) of 16 bits -> (N / 2, W) of 32: two neighbours of a column each."""
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
    """The transposed (D, N), in memory as it is read, of words (N, D); N is a multiple of 16.

    Its rows are a cache's line further apart than they are long: with powers of two between them, they would all want
    the same places of the cache.
    """
    N, D = pairs.shape
    columns = np.empty((D, N + LINE), pairs.dtype)[:, :N]
    for n in range(0, N, LINE):
        for d in range(D):
            for lane in range(LINE):
                columns[d, n + lane] = pairs[n + lane, d]
    return columns


def turned_back(sums, like):
    """Rows (S, D) of numbers such as others are, for sums (D, S) in float32."""


@overload(turned_back)
def _turned_back(sums, like):
    if like.dtype != types.uint16:
        return lambda sums, like: turned(sums)

    def narrowed(sums, like):
        pairs = np.empty((sums.shape[0] // 2, sums.shape[1]), np.uint32)  # of neighbours in a row of the result
        for pair in range(len(pairs)):
            even, odd, both = sums[2 * pair], sums[2 * pair + 1], pairs[pair]
            for s in range(len(both)):
                both[s] = np.uint32(narrow(even[s])) | np.uint32(np.uint32(narrow(odd[s])) << np.uint32(16))
        return turned(pairs).view(np.uint16)

    return narrowed


def pointer(builder, kind, start, *steps):
    """Writes for LLVM, as do the next three: where something of a kind lies, so many steps of some bytes each behind an
    address."""
    for stride, number in steps:
        start = builder.add(start, builder.mul(stride, number))
    return builder.inttoptr(start, kind.as_pointer())


def in_all_lanes(builder, number, lanes: int):
    """A register with one number everywhere."""
    nothing, first = ir.VectorType(number.type, lanes)(ir.Undefined), ir.VectorType(INT, lanes)([0] * lanes)
    return builder.shuffle_vector(builder.insert_element(nothing, number, INT(0)), nothing, first)


def multiply_and_add(builder, left, right, total):
    """total + left right, of registers of float32."""
    floats = total.type
    kind = ir.FunctionType(floats, [floats] * 3)
    fused = get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{floats.count}f32")
    return builder.call(fused, [left, right, total])


def repeat(builder, count, step: int, first: list, body) -> list:
    """A loop over 0, step, ... below count, at least once, that carries registers from one turn to the next: `body`
    takes the number and them and returns what follows them. Returns the last."""
    before, loop, after = builder.block, *(builder.append_basic_block() for _ in range(2))
    builder.branch(loop)
    builder.position_at_end(loop)
    number, carried = builder.phi(ADDRESS), [builder.phi(start.type) for start in first]
    last = body(number, carried)
    following = builder.add(number, ADDRESS(step))
    for phi, start, value in zip([number, *carried], [ADDRESS(0), *first], [following, *last], strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(value, loop)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
    builder.position_at_end(after)
    return last


def _codegen(tile: Tile, add: bool):
    """Writes a tile for LLVM: a loop over what is summed, with sums that are carried from one word to the next."""

    def codegen(context, builder, signature, arguments):
        left, left_stride, right, right_stride, product, product_stride, count = arguments
        lanes = range(0, tile.columns, tile.lanes)
        words, floats = ir.VectorType(tile.word, tile.lanes), ir.VectorType(FLOAT, tile.lanes)
        places = [
            pointer(builder, floats, product, (product_stride, ADDRESS(row)), (ADDRESS(4), ADDRESS(lane)))
            for row in range(tile.rows)
            for lane in lanes
        ]

        def added(total, column, row):
            if tile.halves and available(halves=True):
                kind = ir.FunctionType(floats, [floats, words, words])
                return builder.call(ir.InlineAsm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v"), [total, column, row])
            for factors in both_floats(column, row) if tile.halves else [(column, row)]:
                total = multiply_and_add(builder, *factors, total)
            return total

        def both_floats(*pairs):
            """The earlier halves of words and the later ones, as the float32 that each is."""
            size, upper = words([16] * tile.lanes), words([0xFFFF0000] * tile.lanes)
            halves = [[builder.shl(pair, size), builder.and_(pair, upper)] for pair in pairs]
            return zip(*([builder.bitcast(half, floats) for half in both] for both in halves), strict=True)

        def add_word(word, sums):
            columns = [
                builder.load(pointer(builder, words, right, (right_stride, word), (ADDRESS(4), ADDRESS(lane))), align=4)
                for lane in lanes
            ]
            spread = []
            for row in range(tile.rows):
                place = pointer(builder, tile.word, left, (left_stride, ADDRESS(row)), (ADDRESS(4), word))
                spread.append(in_all_lanes(builder, builder.load(place, align=4), tile.lanes))
            pairs = [(column, one) for one in spread for column in columns]
            return [added(total, *pair) for total, pair in zip(sums, pairs, strict=True)]

        if add:
            first = [builder.load(place, align=4) for place in places]
        else:
            first = [floats([0.0] * tile.lanes)] * len(places)
        for total, place in zip(repeat(builder, count, 1, first, add_word), places, strict=True):
            builder.store(total, place, align=4)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), codegen


def _tile(tile: Tile, add: bool):
    """Numbers of a product of a tile's size: addresses, the bytes from one row to the next, and the words summed."""

    @intrinsic
    def function(typing, left, left_stride, right, right_stride, product, product_stride, count):
        return _codegen(tile, add)

    return function


def multiply(left, right, product):
    """product (M, N) = left right, for the first M rows of words left (., K), K > 0, and right (K or more, N), which
    is a matrix `down` its columns; M is a multiple of 8, N of 32."""


def multiply_add(left, right, product):
    """product (M, N) += left right, for words (M, K) and right (K or more, N); M is a multiple of 8, N of 32."""


def multiply_few(left, right, product):
    """product = left right in float32, of the size of the tile FEW, for rows left (FEW_ROWS, K) and right (K,
    FEW_COLUMNS): where all columns there are fit one tile, wide ones are half empty."""


@overload(multiply)
def _multiply(left, right, product):
    return _tiled(TILES[left.dtype], add=False)


@overload(multiply_add)
def _multiply_add(left, right, product):
    return _tiled(TILES[left.dtype], add=True)


@overload(multiply_few)
def _multiply_few(left, right, product):
    return _tiled(FEW, add=False)


def _tiled(tile: Tile, add: bool):
    """A product, tile by tile."""
    one, rows, columns = _tile(tile, add), tile.rows, tile.columns

    def product_of(left, right, product):
        for column in range(0, product.shape[1], columns):
            for row in range(0, len(product), rows):
                one(
                    left[row:].ctypes.data,
                    left.strides[0],
                    right[:, column:].ctypes.data,
                    right.strides[0],
                    product[row:, column:].ctypes.data,
                    product.strides[0],
                    left.shape[1],
                )

    return product_of
