"""A token behind many others beside one behind few, and several texts at once beside one: `python -m benchmarks.ratios
[--sizes tiny small] [--stretches N]`.

Both sides of a ratio decode short stretches in turn, so that a drifting machine hurts both; the median of a stretch's
tokens counts, without its first ones, which find the other side's memories in the processor's caches. One line a ratio.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.measure import MANY, ratio
from benchmarks.systems import SIZES, System, build
from mosaic_cli.core.model import arrange_for_decoding
from mosaic_cli.device import choose_placement, keep_freed_memory

SYSTEMS = ("mosaic", "transformer")
LONGEST = 8192  # tokens of context, for the transformer's sake
TOKENS, FIRST = 16, 2  # of a stretch, and those before it that do not count
PAIRS = (((100, 1), (4000, 1)), ((128, 1), (4096, 1)), ((479, 1), (479, 16)))  # (tokens behind, texts at once)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["tiny", "small"], metavar="SIZE")
    parser.add_argument("--stretches", type=int, default=20)
    asked = parser.parse_args()
    keep_freed_memory()
    device = choose_placement(decoding=True).device
    for size in asked.sizes:
        for name in SYSTEMS:
            system = build(name, SIZES[size].shape | {"context_length": LONGEST}, device)
            arrange_for_decoding(system.model.eval(), tokens=MANY)
            for sides in PAIRS:
                print(f"{size:6} {name:12} {_compared(system, sides, asked.stretches)}", flush=True)


@torch.inference_mode()
def _compared(system: System, sides: tuple[tuple[int, int], ...], stretches: int) -> str:
    decode = [_stretch(system, *side) for side in sides]
    few, many = zip(*([one() for one in decode] for _ in range(stretches)), strict=True)
    longer = ratio(many, few)
    of_each = (
        f"{texts} x behind {behind:,} {1e3 * statistics.median(seconds):.2f} ms"
        for (behind, texts), seconds in zip(sides, (few, many), strict=True)
    )
    at_once = sides[1][1] / sides[0][1]
    speed = f", {at_once / longer:.1f} times the tokens a second" if at_once > 1 else ""
    return f"{', '.join(of_each)}: {longer:.2f} times as long{speed}"


def _stretch(system: System, behind: int, texts: int) -> Callable[[], float]:
    """What decodes a stretch and returns its median seconds a token, for all texts."""
    tokens = torch.randint(system.config.vocab_size, (texts, behind), generator=torch.Generator().manual_seed(0))
    logits, cache = system.read(tokens.to(system.model.embedding.weight.device), None)

    @torch.inference_mode()
    def decode() -> float:
        nonlocal logits, cache
        seconds = []
        for _ in range(FIRST + TOKENS):
            token = logits.argmax(-1)[:, None]
            started = time.perf_counter()
            logits, cache = system.read(token, cache)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds[FIRST:])

    return decode


if __name__ == "__main__":
    main()
