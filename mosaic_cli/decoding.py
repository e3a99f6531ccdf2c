"""One token after another: plainly, or on a GPU by a step that is recorded once and replayed.

Decoding launches some hundred small kernels for each token, and a GPU waits for the launches. A CUDA graph launches
them all at once. It needs the same shapes and the same memory for every token: pairs are kept in buffers with room
(`FixedPairs`), how many there are is a number on the device, and what each token replaces is written back to its place.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mosaic_cli.core import kernels
from mosaic_cli.core.cache import AttentionCache, FixedPairs, MemoryCache
from mosaic_cli.core.memory import PairRead, SlotRead
from mosaic_cli.core.model import LanguageModel
from mosaic_cli.core.transformer import CausalRead
from mosaic_cli.device import Placement

WARM_UP = 2  # steps before recording, in which libraries choose and compile their kernels
READS = (PairRead, SlotRead, CausalRead)  # that do the same whatever the token
Step = Callable[[], Tensor]


def step_by_step(
    model: LanguageModel, cache: object, placement: Placement, compiled: bool = False
) -> Callable[[Tensor], Tensor]:
    """A function from each text's next token (B,) to the logits after it (B, V), which goes on from what was read.

    The logits are only good until the next call. Where steps are recorded, the cache belongs to the function from now
    on, and they may be compiled too: see `RecordedStep`.
    """
    if records(model, placement.device):
        return RecordedStep(model, cache, placement, compiled=compiled)
    return plain_step(model, cache, placement)


def plain_step(model: LanguageModel, cache: object, placement: Placement) -> Callable[[Tensor], Tensor]:
    """`step_by_step` without a recording, for any device and model."""

    @torch.inference_mode()
    def step(tokens: Tensor) -> Tensor:
        with placement.autocast():
            return model.head(model.hidden(tokens[:, None], cache)[:, -1])

    return step


def records(model: LanguageModel, device: torch.device) -> bool:
    """Whether steps of a model are recorded there: on a GPU with Triton, those of a transformer, and of a mosaic that
    reads all earlier pairs with the same bandwidth (v1), with memories as they were trained. Those of v2, and edited
    ones, depend on the number of tokens in other ways."""
    if device.type != "cuda" or not kernels.HAS_TRITON:
        return False
    config = model.config
    v1 = config.windows == "full" and config.bandwidth == "fixed" and config.key_extractor != "gated"
    reads = [module.read for module in model.modules() if hasattr(module, "read")]
    return (config.kind == "transformer" or v1) and all(type(read) in READS for read in reads)


def cuda_graph(step: Step) -> Step:
    """A function that does what `step` does, recorded: its result lies in the same memory each time."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


class RecordedStep:
    """See `step_by_step`.

    Args:
        cache: of at least one token.
        compiled: make the step by torch.compile, which takes a minute and fuses its small operations.
        record: from a step to what is done for each token. Recorded anew when the pairs outgrow their buffers, which
            double.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: LanguageModel,
        cache: MemoryCache | AttentionCache,
        placement: Placement,
        *,
        compiled: bool = False,
        record: Callable[[Step], Step] = cuda_graph,
    ):
        self.model, self.cache, self.placement, self._record = model, cache, placement, record
        self._compute = torch.compile(self._logits, dynamic=False) if compiled else self._logits
        pairs = cache.length - (model.config.kind == "mosaic")  # whose newest key waits for its value
        self._newest = [torch.tensor([count - 1], device=placement.device) for count in (pairs, cache.length)]
        for owner, name in _replaced(cache):
            setattr(owner, name, getattr(owner, name).clone())
        self._pairs = cache.fix(*self._newest)
        self._tokens: Tensor | None = None
        self._capacity = 0

    @torch.inference_mode()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after each text's next token (B,)."""
        if self._tokens is None:
            self._tokens = tokens[:, None].clone()
        if self.cache.length >= self._capacity:
            self._make_room()
        length = self.cache.length
        self._tokens.copy_(tokens[:, None])
        logits = self._replay()
        self.cache.length = length + 1
        return logits

    def _make_room(self) -> None:
        config = self.model.config
        most = config.context_length if config.kind == "transformer" else math.inf  # beyond it the step says so
        self._capacity = min(FixedPairs.capacity_for(self.cache.length + 1), most)
        for pairs in self._pairs:
            pairs.make_room(self._capacity)
        kept = [*self._newest, *(getattr(owner, name) for owner, name in _replaced(self.cache))]
        before = [tensor.clone() for tensor in kept]
        length = self.cache.length

        def again() -> None:
            self.cache.length = length
            for tensor, value in zip(kept, before, strict=True):
                tensor.copy_(value)

        for _ in range(WARM_UP):
            self._step()
            again()
        self._replay = self._record(self._step)
        self.cache.length = length

    def _step(self) -> Tensor:
        with self.placement.autocast():
            return self._compute()

    def _logits(self) -> Tensor:
        for place in self._newest:
            place.add_(1)
        places = [(owner, name, getattr(owner, name)) for owner, name in _replaced(self.cache)]
        logits = self.model.head(self.model.hidden(self._tokens, self.cache)[:, -1])
        for owner, name, place in places:
            place.copy_(getattr(owner, name))
            setattr(owner, name, place)
        return logits


def _replaced(cache: MemoryCache | AttentionCache) -> Iterator[tuple[object, str]]:
    """Where a cache keeps what each token replaces: owners, and names of their tensors."""
    if isinstance(cache, AttentionCache):
        return
    for memory in cache.contextual:
        yield memory.values, "pending"
        if memory.keys is not None:
            yield memory.keys, "average"
    for memory in cache.persistent:
        if memory is not None and memory.keys is not None:
            yield memory.keys, "average"
