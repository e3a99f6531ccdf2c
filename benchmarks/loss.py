"""The loss in chunks beside the plain one, forward and backward, in turn: `python -m benchmarks.loss [--rounds N]
[--dtype float32]`.

One line a vocabulary: milliseconds of both, how many times as fast chunks are, and the bytes of all logits against
those of a chunk's. It is where `core.loss.CHUNKED_FROM` comes from.
"""

import argparse
import statistics

import torch

from benchmarks.measure import interleaved, ratio
from mosaic_cli.core.linear import linear
from mosaic_cli.core.loss import ChunkedLoss, chunk_tokens
from mosaic_cli.core.model import next_token_loss
from mosaic_cli.device import choose_placement, keep_freed_memory

CASES = ((66, 128, 768), (257, 128, 2048), (512, 128, 2048), (1024, 128, 2048), (2048, 128, 2048), (8192, 256, 4096))
LARGE = (50257, 768, 1024)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", action="store_true", help=f"also V, C, N = {LARGE}")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    asked = parser.parse_args()
    keep_freed_memory()  # as `mosaic train` does: it spares the plain loss more than the chunks
    placement = choose_placement(dtype=asked.dtype)
    for V, C, N in (*CASES, *([LARGE] if asked.large else [])):
        hidden = torch.randn(N, C, device=placement.device).requires_grad_()
        head = (0.02 * torch.randn(V, C, device=placement.device)).requires_grad_()
        targets = torch.randint(0, V, (N,), device=placement.device)

        def plain(h=hidden, w=head, t=targets) -> None:
            with placement.autocast():
                loss = next_token_loss(linear(h, w)[None], t[None], "sum")
            torch.autograd.grad(loss, (h, w))

        def chunked(h=hidden, w=head, t=targets) -> None:
            with placement.autocast():
                loss = ChunkedLoss.apply(h, w, t)
            torch.autograd.grad(loss, (h, w))

        prepared = {"plain": lambda run=plain: run, "chunked": lambda run=chunked: run}
        seconds = interleaved(prepared, asked.rounds)
        ms = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
        chunk = min(N, chunk_tokens(placement.device, placement.dtype))
        print(
            f"V {V:6,}  C {C:4}  N {N:5,}  plain {ms['plain']:8.1f} ms  chunked {ms['chunked']:8.1f} ms  "
            f"{ratio(seconds['plain'], seconds['chunked']):.2f} times as fast  "
            f"logits {4 * N * V / 1e6:6.1f} MB, of a chunk {4 * chunk * V / 1e6:5.1f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
