"""What this processor can do, by LLVM's names for it."""

from functools import cache

from llvmlite import binding


def has(*features: str) -> bool:
    """Whether this processor has all of these."""
    there = binding.get_host_cpu_features()
    return all(there.get(feature, False) for feature in features)


@cache
def wide() -> bool:
    """Whether products of float32 take registers of 16 numbers."""
    return has("avx512f")


@cache
def wider_than_torch() -> bool:
    """Whether these are wider than those of torch's own products, which take 16 on Intel's processors, 8 on AMD's."""
    return wide() and binding.get_host_cpu_name().startswith("znver")
