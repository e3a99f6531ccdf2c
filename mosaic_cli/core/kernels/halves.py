"""Numbers of bfloat16 in compiled loops, which NumPy does not know: as the 16 bits that they are. And what loops do
with such numbers or float32: the exponential, the product of two vectors, the weights of a softmax."""

import math

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor

from mosaic_cli.core.kernels.compiled import inner

LOG2_E = np.float32(math.log2(math.e))
TAYLOR = tuple(np.float32(math.log(2) ** k / math.factorial(k)) for k in range(7))  # of 2^x: 2e-7 for |x| <= 1/2


def bits(x: Tensor) -> Tensor:
    """What loops take for a tensor: itself, or the bits of bfloat16."""
    return x.view(torch.uint16) if x.dtype == torch.bfloat16 else x


@inner
def exp(x):
    """e^x for x <= 0 to two millionths, never less than 2^-126; what is not a number stays so."""
    x *= LOG2_E
    x = np.float32(-126) if x < np.float32(-126) else x
    whole = np.floor(x + np.float32(0.5))
    x -= whole
    power = TAYLOR[6]
    power = power * x + TAYLOR[5]
    power = power * x + TAYLOR[4]
    power = power * x + TAYLOR[3]
    power = power * x + TAYLOR[2]
    power = power * x + TAYLOR[1]
    power = power * x + TAYLOR[0]
    return power * np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)


@inner
def narrow(x):
    """The bits of the bfloat16 nearest to a float32, of two the even one; what is not a number stays so."""
    x = np.float32(x)
    bits = x.view(np.uint32)
    last = np.uint32(bits >> np.uint32(16)) & np.uint32(1)
    rounded = np.uint32(bits + np.uint32(0x7FFF) + last)
    return np.uint16((rounded if x == x else np.uint32(0x7FC00000)) >> np.uint32(16))


@inner
def widen(bits):
    """The float32 that the bits of a bfloat16 are."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


def number(stored):
    """What a loop calculates with for what it finds in an array, which may be the bits of bfloat16."""


def stored(number, array):
    """What a loop writes into an array, which may be of the bits of bfloat16, for a number."""


@overload(number)
def _number(stored):
    return (lambda stored: widen(stored)) if stored == types.uint16 else (lambda stored: stored)


@overload(stored)
def _stored(number, array):
    return (lambda number, array: narrow(number)) if array.dtype == types.uint16 else (lambda number, array: number)


@inner
def dot(left, right):
    """The product of two vectors, as long as the second is."""
    total = np.float32(0)
    for d in range(len(right)):
        total += number(left[d]) * number(right[d])
    return total


def greatest_of(numbers):
    """The largest of some float32 or bits of bfloat16, in float32, or what is not a number.

    Integers compare as the floats of the same bits do, once the lower bits of negative ones are turned: a maximum of
    floats would be taken one by one, for the sake of what is not a number.
    """


@overload(greatest_of)
def _greatest_of(numbers):
    if numbers.dtype == types.uint16:

        def greatest(numbers):
            turned, ordered, highest = np.int16(0x7FFF), numbers.view(np.int16), np.int16(-0x8000)
            for n in range(len(numbers)):
                highest = max(highest, np.int16(ordered[n] ^ (np.int16(ordered[n] >> np.int16(15)) & turned)))
            return widen(np.int16(highest ^ (np.int16(highest >> np.int16(15)) & turned)).view(np.uint16))

    else:

        def greatest(numbers):
            turned, ordered, highest = np.int32(0x7FFFFFFF), numbers.view(np.int32), np.int32(-0x80000000)
            for n in range(len(numbers)):
                highest = max(highest, np.int32(ordered[n] ^ (np.int32(ordered[n] >> np.int32(31)) & turned)))
            return np.int32(highest ^ (np.int32(highest >> np.int32(31)) & turned)).view(np.float32)

    return greatest


@inner
def powers(scores, scale, weights):
    """Fill a query's weights with e^(scale score), over the greatest; returns their sum and the greatest score.

    Weights are not written over scores: a loop that reads and writes one array is compiled number by number.
    """
    greatest, total = greatest_of(scores), np.float32(0)
    for s in range(len(scores)):
        power = exp((scores[s] - greatest) * scale)
        weights[s] = stored(power, weights)
        total += power
    return total, greatest
