"""What forgetting memories really does: many deletions of one text, run through the model side by side.

Two questions are asked of a stored pair. *Deleted*: what if no later token could read it, in any layer above? The
others take up its weight, and everything is computed again. *Unread*: what if only the newest few tokens, which make
the key that asks, could not read it, and all that earlier tokens stored stood as it is? The second costs a few tokens'
work for each pair, so a trace can afford it; the first is what a trace is held against.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from mosaic_cli.core.model import LanguageModel
from mosaic_cli.probes.edits import edited, whole_cache, without_pairs
from mosaic_cli.probes.reading import Reading

# Tokens run at once: more are slower on a CPU, where their dense weights leave the caches.
BATCH_TOKENS = 4096
BATCH_LOGITS = 1 << 26  # logits held at once, so that a large vocabulary stays bounded
# Tokens whose leaky average asks: at the slowest leak that training starts from, 0.61, they make 98 % of a key.
ASKING = 8


@torch.no_grad()
def after_deletions(
    model: LanguageModel, reading: Reading, dropped: Tensor, first: int = 0, newest_only: bool = False
) -> Iterator[Tensor]:
    """Logits (batch, T, V) of a text without some of its stored pairs, a batch of variants at a time, in order.

    Nothing for no variants. Logits lie where `dropped` lies: where the reading does, which Apple's GPUs cannot hold.

    Args:
        model: the one that made the reading, in evaluation mode.
        dropped: (variants, N, H, S) bool, the pairs to forget in each variant.
        first: the lowest layer in which any variant drops a pair; what lies below is not computed again.
        newest_only: leave out all logits but those after the last token: (batch, 1, V).
    """
    stream = reading.layers[first].norm.stream.to(model.embedding.weight)  # (T, C)
    for batch in _batches(model, dropped, len(stream), 1 if newest_only else len(stream)):
        with edited(model, without_pairs(model, batch, first)):
            x = stream.expand(len(batch), -1, -1)
            for block in model.blocks[first:]:
                x = block(x)
        yield model.head(model.finish(x[:, -1:] if newest_only else x)).to(dropped.device)


@torch.no_grad()
def unread_by_newest(model: LanguageModel, reading: Reading, dropped: Tensor, newest: int = 1) -> Iterator[Tensor]:
    """Logits (batch, V) after a text whose newest tokens alone read without some pairs, a batch of variants at a time.

    As `after_deletions` yields them.

    Args:
        model: the one that made the reading, in evaluation mode.
        dropped: (variants, N, H, S) bool, the pairs that the newest tokens cannot read in each variant.
        newest: how many tokens these are.
    """
    earlier, last = reading.tokens[:-newest], reading.tokens[-newest:]
    device = model.embedding.weight.device
    cache = whole_cache(model)
    if earlier:
        model.hidden(torch.tensor([earlier], device=device), cache)
    for batch in _batches(model, dropped, len(reading.tokens), 1):
        tokens = torch.tensor([last], device=device).expand(len(batch), -1)
        copies = cache.repeat(len(batch))
        with edited(model, without_pairs(model, batch)):
            hidden = model.hidden(tokens, copies)
        yield model.head(hidden[:, -1]).to(dropped.device)


def _batches(model: LanguageModel, dropped: Tensor, num_tokens: int, num_predicted: int) -> tuple[Tensor, ...]:
    """The variants in batches, where the model is. Each reads `num_tokens` and gives logits after the last few."""
    if not len(dropped):
        return ()
    most = min(BATCH_TOKENS // num_tokens, BATCH_LOGITS // (num_predicted * model.config.vocab_size))
    return dropped.to(model.embedding.weight.device).split(max(1, most))


def one_each(chosen: Tensor) -> Tensor:
    """A variant (n, N, H, S) for each of the n pairs chosen (N, H, S), which drops that pair alone."""
    places = chosen.nonzero()
    dropped = torch.zeros(len(places), *chosen.shape, dtype=torch.bool, device=chosen.device)
    dropped[torch.arange(len(places)), *places.T] = True
    return dropped


def unread_effects(model: LanguageModel, reading: Reading, target: int, smallest: float = 1e-4) -> Tensor:
    """Change of the log-probability of `target` after the text when its newest tokens, `ASKING` of them, cannot read a
    pair: (N, H, S).

    Pairs to which none of them gives a weight above `smallest` are not tried and count as without effect.
    """
    chosen = torch.stack([layer.pairs.all_weights()[:, -ASKING:].amax(1) > smallest for layer in reading.layers])
    effects = torch.zeros(chosen.shape, dtype=torch.float64, device=chosen.device)
    whole = _log_probability(reading.logits[-1], target)
    variants = unread_by_newest(model, reading, one_each(chosen), ASKING)
    found = [_log_probability(logits, target) - whole for logits in variants]
    effects[chosen] = torch.cat([*found, whole.new_empty(0)])
    return effects


def _log_probability(logits: Tensor, target: int) -> Tensor:
    return logits.double().log_softmax(-1)[..., target]


def single_deletions(model: LanguageModel, reading: Reading, target: int, smallest: float = 1e-4) -> Tensor:
    """Log-probability of `target` after the text, without each stored pair alone, minus that with all: (N, H, S).

    Pairs that no token of the text gives a weight above `smallest` are not tried and count as without effect.
    """
    used = torch.stack([layer.pairs.all_weights().amax(1) > smallest for layer in reading.layers])  # (N, H, S)
    effects = torch.zeros(used.shape, dtype=torch.float64, device=used.device)
    whole = _log_probability(reading.logits[-1], target)
    for layer in range(len(used)):
        chosen = torch.zeros_like(used)
        chosen[layer] = used[layer]
        for_each = after_deletions(model, reading, one_each(chosen), layer, newest_only=True)
        found = [_log_probability(logits[:, -1], target) - whole for logits in for_each]
        effects[chosen] = torch.cat([*found, whole.new_empty(0)])
    return effects
