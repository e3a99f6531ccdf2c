"""Fused forms of a few functions: `leaky`, `gated` and `values` for GPUs, the others for a CPU, mostly where it trains.

Those for GPUs need Triton, which comes with PyTorch for CUDA; without it PyTorch's own operations serve, and
`implementation` says so.
"""

import math
from importlib.util import find_spec

import torch

from mosaic_cli.core.config import ModelConfig

HAS_TRITON = find_spec("triton") is not None
LEAST_PAST, MOST_PAST = 128, 1024  # pairs, between which loops read a past in float32 where torch's products are wide
MANY = {torch.bfloat16: 2**16, torch.float32: 2**20}  # numbers that are worth loading Numba for without gradients
LEAST_ROWS, MOST_ROWS = 8, 64  # of a product by `few_rows`
WEIGHTS = 2**16  # numbers at least of its matrix, and of the slots that `slots` reads
ONEDNN_WEIGHTS, ONEDNN_PRODUCTS = 2**14, 2**22  # numbers of a matrix at least, and multiplications with all rows
QUANTISED = 2**16  # numbers that a buffer of keys has room for, from which on a single query reads them in 16 bits


def serves(x: torch.Tensor) -> bool:
    """Whether Triton's kernels compute functions of x: on a CUDA device, in at most float32."""
    return x.is_cuda and x.dtype.itemsize <= 4 and HAS_TRITON


def product_dtype(x: torch.Tensor) -> torch.dtype:
    """In which products of x are made: autocast's dtype where it is on, else that of x."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def loops_serve(x: torch.Tensor, loops: bool = False) -> bool:
    """Whether compiled loops compute functions of x: on a CPU, not while compiling, where gradients are recorded; and
    without them where x is large, as in validation: the larger, the better the plain functions are.

    Elsewhere the plain functions are quick enough, for Numba takes a second to load; unless it is to be loaded for
    other `loops` anyway.
    """
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return loops or torch.is_grad_enabled() or x.numel() >= MANY.get(product_dtype(x), math.inf)


def quantised_serve(buffer: torch.Tensor) -> bool:
    """Whether `quantised` reads a buffer of stored keys or values (B, H, capacity, D): a large one, in float32, on a
    CPU."""
    fits = buffer.device.type == "cpu" and buffer.dtype == torch.float32 and buffer.shape[-1] % 4 == 0
    return fits and buffer.numel() >= QUANTISED and not buffer.requires_grad


def few_rows_serve(rows: int, dtype: torch.dtype, weight: torch.Tensor) -> bool:
    """Whether `few_rows` multiplies a matrix of some size with so many rows of this dtype on a CPU, in float32."""
    large = weight.numel() >= WEIGHTS and dtype == weight.dtype == torch.float32
    return large and _one_or_a_few(rows)


def onednn_serves(rows: int, dtype: torch.dtype, weight: torch.Tensor) -> bool:
    """Whether `onednn` multiplies a matrix with so many rows of this dtype, and makes the gradients: in float32, of
    some size, on a CPU whose wide registers torch's own library for products leaves half empty."""
    large = weight.numel() >= ONEDNN_WEIGHTS and rows * weight.numel() >= ONEDNN_PRODUCTS
    on_cpu = weight.device.type == "cpu" and dtype == weight.dtype == torch.float32
    return large and on_cpu and torch.backends.mkldnn.is_available() and _is_wider_than_torch()


def slots_serve(queries: torch.Tensor, keys: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether `slots` reads slots (H, M, D) by queries (B, H, 1, D) on a CPU, with products in this dtype: many, in
    float32, as they lie in training; of one text, or of a few if tiles divide them."""
    B, (_, M, D) = len(queries), keys.shape
    large = keys.numel() >= WEIGHTS and queries.dtype == keys.dtype == dtype == torch.float32
    return large and keys.is_contiguous() and (B == 1 or M % 8 == D % 32 == 0) and _one_or_a_few(B)


def _one_or_a_few(rows: int) -> bool:
    """Whether loops multiply so many rows: one, or a few more than torch is quick at if there is a tile for them."""
    return rows == 1 or (LEAST_ROWS <= rows <= MOST_ROWS and _has_tile(torch.float32))


def load_for_decoding(texts: int) -> None:
    """Load the loops that decode so many long texts side by side and read their prompt, or compile them, so that it is
    not counted as the first token's time."""
    from mosaic_cli.core.kernels import attention, cpu, few_rows, quantised, slots

    pairs, one = torch.zeros(1, 1, 8, 32), torch.ones(1)
    quantised.QuantisedPairs(pairs, pairs).attend(pairs[:, :, :1], 1.0, 1)
    for rows in {1, texts}:  # a prompt is read by itself
        if _one_or_a_few(rows):
            queries = torch.zeros(rows, 1, 1, 32)
            slots.read_slots(queries, pairs[0], pairs[0], one, one)
            few_rows.linear(queries, pairs[0, 0])
    cpu.keys_and_average(pairs, torch.zeros(8))
    if _has_tile(torch.float32):
        attention.attend(pairs, pairs, pairs, 1.0)


def attention_serves(x: torch.Tensor, past: int | None = None, windowed: bool = False, loops: bool = False) -> bool:
    """Whether `attention` serves queries x: where loops do, on processors quick at its products. In bfloat16 always,
    and in float32 where torch's own leave half of the registers empty (`processor.wider_than_torch`); else for causal
    reads of some size, below which torch's own is quick and beyond which it wastes little.

    Args:
        past: how many pairs a query reads at most, the newest; None where all queries read all pairs.
        windowed: whether there are older ones; torch reads windows by masks.
        loops: whether they may serve a few queries, see `loops_serve`.
    """
    if not loops_serve(x, loops):
        return False
    return _attends(product_dtype(x), past, windowed) and _has_tile(product_dtype(x))


def _attends(dtype: torch.dtype, past: int | None, windowed: bool) -> bool:
    if dtype == torch.float32 and not _is_wider_than_torch():
        return past is not None and (windowed or past > LEAST_PAST) and past <= MOST_PAST
    return dtype in (torch.float32, torch.bfloat16)


def _pasts(config: ModelConfig) -> list[tuple[int, bool]]:
    """How many pairs each kind of read of a training window meets at most, and whether there are older ones."""
    T = config.context_length
    if config.kind == "transformer":
        return [(T, False)]
    short = config.short_window or T
    reads = {
        "full": (T - 1, False),
        "short": (min(short, T - 1), short < T - 1),
        "long": (T - (config.long_delay or 1), False),
    }
    return [reads[memory] for memory in config.memories]


def _is_wider_than_torch() -> bool:
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    from mosaic_cli.core.kernels import processor  # only now, as other machines have no use for it

    return processor.wider_than_torch()


def _has_tile(dtype: torch.dtype) -> bool:
    from mosaic_cli.core.kernels import tile  # only now, for Numba takes a second to load

    return tile.available(halves=dtype == torch.bfloat16)


def implementation(device: torch.device, dtype: torch.dtype, config: ModelConfig, compiled: bool = False) -> str | None:
    """How a model is trained there, in words for people to read; None where nothing needs to be said.

    Args:
        dtype: of the products.
        compiled: whether torch's compiler makes the step, which has no use for the loops on a CPU.
    """
    kind = config.kind
    if device.type == "cpu" and not compiled:
        reads = _pasts(config) + [(None, False)] * (kind == "mosaic" and config.persistent == "slots")
        attending = not config.dropout and any(_attends(dtype, *read) for read in reads) and _has_tile(dtype)
        looped = ["attention"] * attending + ["keys", "values"] * (kind == "mosaic")
        return (
            f"{', '.join(looped)} by loops, which the first step compiles unless they were before" if looped else None
        )
    if device.type != "cuda" or kind != "mosaic":
        return None
    if HAS_TRITON:
        return "keys and values by Triton"
    return "keys and values by PyTorch, slower (Triton is not installed: pip install triton)"
