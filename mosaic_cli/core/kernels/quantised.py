"""Reading many stored pairs by one query of each text, as in decoding on a CPU, in half the bytes.

Such a read does little with a pair, so it takes as long as the pairs take to come from memory. They are kept twice, as
they are and in 16 bits a number, and read in 16 bits but for the few that have most of the say.

A vector x is kept as the integers nearest to x / s, where s = max |x_d| / 32767. An error of delta in the scores
changes a read by about delta sqrt(sum of the squared weights). Pairs of a weight over 1/128 are read as they are, which
are 127 at most: the squares of the others sum to less than 1/128, so that an eleventh of delta is left. That is so
where the errors are independent, and those of equal keys are equal: so where delta may be large, for bandwidths of some
hundred, all is read as it is.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mosaic_cli.core.kernels.compiled import inner, loops, prange, run
from mosaic_cli.core.kernels.halves import dot, exp, greatest_of, powers
from mosaic_cli.core.kernels.parts import join, parts_for
from mosaic_cli.core.kernels.prefetch import request_once
from mosaic_cli.core.kernels.weighted import AHEAD, NARROW, WIDEST, add_weighted

BLOCK = WIDEST  # pairs whose keys lie together, dimension by dimension, so that a query meets a run of them at a time
LARGEST = np.float32(32767)  # integer of 16 bits
MOST_ERROR = np.float32(2**-9)  # size of a scaled query times s of its keys; up to 1 / (2 sqrt(3)) of it is delta
MOST_HEAVY = 128  # pairs are read as they are: those whose weight is more than one in so many


class _Vectors(NamedTuple):
    keys: np.ndarray
    values: np.ndarray


class QuantisedPairs:
    """A copy in 16 bits of pairs in buffers (B, H, capacity, D), float32 and contiguous, which stay where they are."""

    def __init__(self, keys: Tensor, values: Tensor):
        B, H, capacity, D = keys.shape
        blocks = -(-capacity // BLOCK)
        self._whole = _Vectors(*(buffer.detach().flatten(0, 1).numpy() for buffer in (keys, values)))
        self._integers = _Vectors(
            np.zeros((B * H, blocks, D, BLOCK), np.int16), np.zeros((B * H, blocks * BLOCK, D), np.int16)
        )
        self._steps = _Vectors(*(np.zeros((B * H, blocks * BLOCK), np.float32) for _ in range(2)))  # s
        self._most = np.zeros((B * H, blocks), np.float32)  # of the keys' s in each block
        self._copied = 0  # pairs

    def attend(self, queries: Tensor, scale: Tensor | float, count: int) -> Tensor:
        """Softmax reads (B, H, 1, D) of the first `count` > 0 pairs; queries (B, H, 1, D), scale one number or (H, 1).

        Pairs that were not read before are copied first.
        """
        B, H, _, D = queries.shape
        scaled = queries * (scale[..., None] if isinstance(scale, Tensor) else scale)
        reads = torch.empty(B * H, D)
        pairs, threads = (*self._whole, *self._integers, *self._steps, self._most), torch.get_num_threads()
        run(_attend, scaled.view(B * H, D), *pairs, self._copied, count, threads, reads)
        self._copied = max(self._copied, count)
        return reads.view(queries.shape)


@inner
def _quantise(vector, integers):
    """Fill with the integers that stand for a vector; returns the step between them, which is not a number where one of
    the vector's is not finite."""
    largest, total = np.float32(0), np.float32(0)
    for d in range(len(vector)):
        largest = max(largest, abs(vector[d]))
        total += abs(vector[d])
    if not np.isfinite(total):
        integers[:] = 0
        return np.float32(np.nan)
    inverse = LARGEST / largest if largest > 0 else np.float32(0)
    for d in range(len(vector)):
        integers[d] = np.int16(np.rint(vector[d] * inverse))
    return largest / LARGEST


@inner
def _copy(keys, values, key_integers, value_integers, key_steps, value_steps, most, start, stop):
    """Copy the pairs number `start` to `stop` - 1 of a row."""
    for place in range(start, stop):
        block, column = place // BLOCK, place % BLOCK
        step = _quantise(keys[place], key_integers[block, :, column])
        key_steps[place] = step
        if step > most[block]:
            most[block] = step
        value_steps[place] = _quantise(values[place], value_integers[place])


@inner
def _score(query, keys, steps, scores):
    """Scores (n,) for a query (D,) of the first n keys (blocks, D, BLOCK) in integers."""
    for block in range(-(-len(scores) // BLOCK)):
        place = scores[block * BLOCK : (block + 1) * BLOCK]
        own = steps[block * BLOCK : (block + 1) * BLOCK]
        request_once(own, 0, own.itemsize * len(place))
        place[:] = 0
        add_weighted(query, keys[block, :, : len(place)], place)
        for i in range(len(place)):
            place[i] *= own[i]


@inner
def _attend_some(query, keys, values, key_integers, value_integers, key_steps, value_steps, most, first, stop, read):
    """Fill read (D,) with the sum of the values number `first` to `stop` - 1 by their weights, which are e^(score - m);
    returns m, the largest score, and the sum of the weights. `first` is a multiple of BLOCK."""
    count = stop - first
    if np.sqrt(dot(query, query)) * greatest_of(most[first // BLOCK : -(-stop // BLOCK)]) > MOST_ERROR:
        return _attend_whole(query, keys[first:stop], values[first:stop], read)
    covered = -(-count // NARROW) * NARROW  # pairs, of which those that are not there yet weigh nothing
    scores, weights = np.empty(covered, np.float32), np.empty(covered, np.float32)
    _score(query, key_integers[first // BLOCK :], key_steps[first:], scores)
    request_once(value_integers[first], 0, AHEAD)
    total, largest = powers(scores[:count], np.float32(1), weights[:count])
    weights[count:] = 0
    read[:] = 0
    heavy, found = np.empty(MOST_HEAVY, np.int64), 0
    least = total / MOST_HEAVY
    for start in range(0, covered, BLOCK):
        request_once(value_steps[first + start :], 0, value_steps.itemsize * BLOCK)
        if greatest_of(weights[start : start + BLOCK]) > least:
            for i in range(start, min(start + BLOCK, covered)):
                if weights[i] > least:
                    heavy[found] = i
                    found += 1
                    request_once(keys[first + i], 0, keys[0].nbytes)
                    request_once(values[first + i], 0, values[0].nbytes)
    for i in heavy[:found]:
        key, value = keys[first + i], values[first + i]
        weight = exp(dot(query, key) - largest)
        for d in range(len(read)):
            read[d] += weight * value[d]
        total += weight - weights[i]
        weights[i] = 0
    for i in range(count):
        weights[i] *= value_steps[first + i]
    add_weighted(weights, value_integers[first : first + covered], read)
    return largest, total


@inner
def _attend_whole(query, keys, values, read):
    """The same from keys and values (n, D) as they are."""
    scores, weights = np.empty(len(keys), np.float32), np.empty(len(keys), np.float32)
    for i in range(len(keys)):
        scores[i] = dot(query, keys[i])
    total, largest = powers(scores, np.float32(1), weights)
    read[:] = 0
    add_weighted(weights, values, read)
    return largest, total


@loops
def _attend(
    queries, keys, values, key_integers, value_integers, key_steps, value_steps, most, copied, count, threads, reads
):
    """Fill reads (rows, D) of the first `count` pairs of each row by queries (rows, D), already scaled."""
    rows, D = queries.shape
    share = -(-count // (parts_for(rows, threads) * BLOCK)) * BLOCK
    parts = -(-count // share)
    sums = np.empty((rows * parts, D), np.float32)
    largest, total = np.empty(rows * parts, np.float32), np.empty(rows * parts, np.float32)
    for task in prange(rows * parts):
        row, part = task // parts, task % parts
        first, stop = part * share, min(count, (part + 1) * share)
        request_once(key_integers[row, first // BLOCK], 0, AHEAD)
        copies = key_integers[row], value_integers[row], key_steps[row], value_steps[row], most[row]
        pairs = (keys[row], values[row], *copies)
        _copy(*pairs, max(first, copied), stop)
        largest[task], total[task] = _attend_some(queries[row], *pairs, first, stop, sums[task])
    for task in range(0, rows * parts, parts):
        join(sums[task : task + parts], largest[task : task + parts], total[task : task + parts], reads[task // parts])
